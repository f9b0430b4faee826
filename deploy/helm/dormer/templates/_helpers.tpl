{{/* The labels of every object; `component` is added where there is one. */}}
{{- define "dormer.labels" -}}
app.kubernetes.io/name: dormer
app.kubernetes.io/part-of: dormer
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "dormer.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "dormer.settings" -}}
{{ .Values.settings | default (.Files.Get "dormer.toml") }}
{{- end }}

{{/* A variable from the Secret: list root, variable, key, optional. */}}
{{- define "dormer.secret" -}}
{{- $root := index . 0 -}}
- name: {{ index . 1 }}
  valueFrom:
    secretKeyRef:
      name: {{ $root.Values.secretName }}
      key: {{ index . 2 }}
{{- if index . 3 }}
      optional: true
{{- end }}
{{- end }}

{{- define "dormer.container-security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop:
    - ALL
{{- end }}

{{- define "dormer.env" -}}
{{ include "dormer.secret" (list . "DORMER_DATABASE_URL" "database-url" false) }}
{{ include "dormer.secret" (list . "DORMER_MASTER_KEY" "master-key" false) }}
{{ include "dormer.secret" (list . "DORMER_JWT_SIGNING_TOKEN_HS256_SECRET_BASE64" "token-secret" false) }}
{{ include "dormer.secret" (list . "AWS_ACCESS_KEY_ID" "s3-access-key-id" true) }}
{{ include "dormer.secret" (list . "AWS_SECRET_ACCESS_KEY" "s3-secret-access-key" true) }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}
