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

{{/* A variable from a Secret: list Secret, variable, key, optional. */}}
{{- define "dormer.secret" -}}
- name: {{ index . 1 }}
  valueFrom:
    secretKeyRef:
      name: {{ index . 0 }}
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

{{/* What the server and the publisher share: the database, the master key and the store. */}}
{{- define "dormer.shared-env" -}}
{{- $database := .Values.database.secretName | default .Values.secretName -}}
{{ include "dormer.secret" (list $database "DORMER_DATABASE_URL" .Values.database.secretKey false) }}
{{ include "dormer.secret" (list .Values.secretName "DORMER_MASTER_KEY" "master-key" false) }}
{{- with .Values.objectBucketClaim }}
{{- /* Kubernetes replaces only what it has read: the address comes after its parts. */}}
{{- range list "HOST" "PORT" }}
- name: BUCKET_{{ . }}
  valueFrom:
    configMapKeyRef:
      name: {{ $.Values.objectBucketClaim }}
      key: BUCKET_{{ . }}
{{- end }}
- name: DORMER_STORAGE_ENDPOINT
  value: http://$(BUCKET_HOST):$(BUCKET_PORT)
- name: DORMER_STORAGE_BUCKET
  valueFrom:
    configMapKeyRef:
      name: {{ . }}
      key: BUCKET_NAME
{{ include "dormer.secret" (list . "AWS_ACCESS_KEY_ID" "AWS_ACCESS_KEY_ID" false) }}
{{ include "dormer.secret" (list . "AWS_SECRET_ACCESS_KEY" "AWS_SECRET_ACCESS_KEY" false) }}
{{- else }}
{{ include "dormer.secret" (list .Values.secretName "AWS_ACCESS_KEY_ID" "s3-access-key-id" true) }}
{{ include "dormer.secret" (list .Values.secretName "AWS_SECRET_ACCESS_KEY" "s3-secret-access-key" true) }}
{{- end }}
{{- end }}

{{- define "dormer.env" -}}
{{ include "dormer.shared-env" . }}
{{ include "dormer.secret" (list .Values.secretName "DORMER_JWT_SIGNING_TOKEN_HS256_SECRET_BASE64" "token-secret" false) }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Where the pods of the server and of the publisher run. */}}
{{- define "dormer.placement" -}}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* For an account: its pods pull with these Secrets. */}}
{{- define "dormer.pull-secrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
