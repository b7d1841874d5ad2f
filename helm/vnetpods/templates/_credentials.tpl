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
{{- if eq .type "secret" }}
- secretRef:
    name: {{ required "azure.credentials.secretName is needed with secret" .secretName }}
{{- end }}
{{- end }}
{{- end }}
