// Reads resources (a JSON list) on standard input and says what the CustomResourceDefinitions of
// their projects object to. Prints the number of resources that a schema was found for.
//
//   node validate.js FOLDER-WITH-NODE_MODULES < resources.json
import { pathToFileURL } from 'node:url'
import { readFileSync } from 'node:fs'

const packages = {
  'external-secrets.io': '@kubernetes-models/external-secrets',
  'gateway.networking.k8s.io': '@kubernetes-models/gateway-api',
  'monitoring.coreos.com': '@kubernetes-models/prometheus-operator',
  'bitnami.com': '@kubernetes-models/sealed-secrets',
}
let checked = 0
for (const resource of JSON.parse(readFileSync(0, 'utf8'))) {
  const name = packages[resource.apiVersion.split('/')[0]]
  if (!name) continue
  const path = `${process.argv[2]}/node_modules/${name}/${resource.apiVersion}/${resource.kind}.js`
  const model = (await import(pathToFileURL(path)))[resource.kind]
  try {
    new model(resource).validate()
  } catch (error) {
    console.error(`${resource.kind} ${resource.metadata.name}: ${error.message}`)
    process.exitCode = 1
  }
  checked += 1
}
console.log(checked)
