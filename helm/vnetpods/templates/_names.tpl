{{/* Labels and references that several templates share. Selectors never carry version or chart: they can't be changed. */}}

{{- define "vnetpods.selector" -}}
app.kubernetes.io/name: vnetpods
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "vnetpods.labels" -}}
{{ include "vnetpods.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "vnetpods.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The API server's address, for pods that start before kube-proxy has made the Service reachable. */}}
{{- define "vnetpods.apiServer" -}}
{{- if .Values.k8sServiceHost }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .Values.k8sServiceHost | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .Values.k8sServicePort | quote }}
{{- end }}
{{- end }}

{{/* The files that the two programs read: what the chart has to say, and over it what the user says. */}}
{{- define "vnetpods.operatorConfig" -}}
{{- $agents := include "vnetpods.selector" (dict "root" . "component" "agent") | fromYaml -}}
{{- $own := dict "election" (dict "namespace" .Release.Namespace) "agents" (dict "namespace" .Release.Namespace "selector" (dict "matchLabels" $agents)) -}}
{{- if .Values.podMonitor.enabled }}{{ $_ := set $own "metricsListen" "0.0.0.0:9462" }}{{ end -}}
{{- mergeOverwrite $own (deepCopy .Values.operator.config) | toYaml -}}
{{- end }}

{{/* The operators' Lease, which the agents read, too. */}}
{{- define "vnetpods.leaseNamespace" -}}
{{ (.Values.operator.config.election | default dict).namespace | default .Release.Namespace }}
{{- end }}
{{- define "vnetpods.leaseName" -}}
{{ (.Values.operator.config.election | default dict).name | default "vnetpods-operator" }}
{{- end }}

{{/* What the operator reads at its start only. */}}
{{- define "vnetpods.operatorFixed" -}}
{{- $config := .Values.operator.config -}}
{{- $azure := omit ($config.azure | default dict) "budget" "networks" -}}
{{- merge (dict "azure" $azure) (pick $config "listen" "metricsListen" "election" "workers" "agents") | toJson -}}
{{- end }}

{{/* Where its probes ask: the pod's address, unless it listens on another one, which is the node's then. */}}
{{- define "vnetpods.operatorProbeHost" -}}
{{- $host := (.Values.operator.config.listen | default "0.0.0.0:9461") | splitList ":" | first -}}
{{- if not (has $host (list "" "0.0.0.0")) -}}
{{- if not .Values.operator.hostNetwork -}}
{{- fail (printf "operator.config.listen: %s can't be probed without operator.hostNetwork; listen on 0.0.0.0" $host) -}}
{{- end -}}
, host: {{ $host | quote }}
{{- end -}}
{{- end }}

{{- define "vnetpods.agentConfig" -}}
{{- $lease := dict "namespace" (include "vnetpods.leaseNamespace" .) "lease" (include "vnetpods.leaseName" .) -}}
{{- $own := dict "operator" $lease "paths" (dict "shim" "/usr/libexec/vnetpods/shim" "sysctl" "/host/proc/sys/net") -}}
{{- if .Values.podMonitor.enabled }}{{ $_ := set $own "http" (dict "address" "0.0.0.0") }}{{ end -}}
{{- mergeOverwrite $own (deepCopy .Values.agent.config) | toYaml -}}
{{- end }}

{{/* Port numbers as the programs' own defaults have them, unless the configuration says otherwise. */}}
{{- define "vnetpods.operatorPort" -}}
{{ (.Values.operator.config.listen | default "0.0.0.0:9461") | splitList ":" | last }}
{{- end }}

{{- define "vnetpods.operatorMetricsPort" -}}
{{ (.Values.operator.config.metricsListen | default "127.0.0.1:9462") | splitList ":" | last }}
{{- end }}

{{- define "vnetpods.operatorScrapedPort" -}}
{{ include "vnetpods.operatorMetricsPort" . | eq (include "vnetpods.operatorPort" .) | ternary "health" "metrics" }}
{{- end }}

{{- define "vnetpods.agentPort" -}}
{{ (.Values.agent.config.http | default dict).port | default 9809 | int }}
{{- end }}
