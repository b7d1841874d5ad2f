{{/* How the operator signs in: environment for azure-identity's default chain, limited to the one kind that is meant. */}}

{{- define "vnetpods.credentialsEnv" -}}
{{- with .Values.azure.credentials }}
{{- if eq .type "managedIdentity" }}
- name: AZURE_TOKEN_CREDENTIALS
  value: ManagedIdentityCredential
{{- else if eq .type "workloadIdentity" }}
- name: AZURE_TOKEN_CREDENTIALS
  value: WorkloadIdentityCredential
- name: AZURE_TENANT_ID
  value: {{ required "azure.credentials.tenantId is needed with workloadIdentity" .tenantId | quote }}
- name: AZURE_FEDERATED_TOKEN_FILE
  value: /var/run/secrets/azure/token
{{- else }}
- name: AZURE_TOKEN_CREDENTIALS
  value: EnvironmentCredential
{{- end }}
{{- if include "vnetpods.mountedCredentials" $ }}
{{- range $name := list "AZURE_TENANT_ID" "AZURE_CLIENT_ID" }}
- name: {{ $name }}
  valueFrom: {secretKeyRef: {name: {{ $.Values.azure.credentials.secretName }}, key: {{ $name }}}}
{{- end }}
{{- if .clientSecretKey }}
- name: AZURE_CLIENT_SECRET_PATH
  value: /var/run/secrets/azure/{{ .clientSecretKey }}
{{- else }}
- name: AZURE_CLIENT_CERTIFICATE_PATH
  value: /var/run/secrets/azure/{{ .certificateKey }}
- name: AZURE_CLIENT_CERTIFICATE_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ .secretName }}, key: AZURE_CLIENT_CERTIFICATE_PASSWORD, optional: true}}
{{- end }}
{{- end }}
{{- if eq .type "workloadIdentity" }}
- name: AZURE_CLIENT_ID
  value: {{ required "azure.credentials.clientId is needed with workloadIdentity" .clientId | quote }}
{{- else if and .clientId (eq .type "managedIdentity") }}
- name: AZURE_CLIENT_ID
  value: {{ .clientId | quote }}
{{- end }}
{{- if .authorityHost }}
- name: AZURE_AUTHORITY_HOST
  value: {{ .authorityHost | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "vnetpods.credentialsEnvFrom" -}}
{{- with .Values.azure.credentials }}
{{- if and (eq .type "secret") (not (include "vnetpods.mountedCredentials" $)) }}
- secretRef:
    name: {{ required "azure.credentials.secretName is needed with secret" .secretName }}
{{- end }}
{{- end }}
{{- end }}

{{/* The key of the Secret that is mounted as a file, which a rotation changes under the running operator. */}}
{{- define "vnetpods.mountedCredentials" -}}
{{- with .Values.azure.credentials }}
{{- if and .clientSecretKey .certificateKey }}
{{- fail "azure.credentials: clientSecretKey and certificateKey exclude each other" }}
{{- end }}
{{- with or .clientSecretKey .certificateKey }}
{{- if or (ne $.Values.azure.credentials.type "secret") (not $.Values.azure.credentials.secretName) }}
{{- fail "azure.credentials: clientSecretKey and certificateKey need type: secret and secretName" }}
{{- end }}
{{- . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "vnetpods.proxyEnv" -}}
{{- with .Values.operator }}
{{- if .httpsProxy }}
- name: HTTPS_PROXY
  value: {{ .httpsProxy | quote }}
- name: NO_PROXY
  value: {{ prepend (compact (list .noProxy)) "$(KUBERNETES_SERVICE_HOST)" | join "," | quote }}
{{- else if .noProxy }}
{{- fail "operator.noProxy needs operator.httpsProxy" }}
{{- end }}
{{- end }}
{{- end }}
