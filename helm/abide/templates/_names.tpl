{{/* Names and labels. A release called `abide` makes `abide-operator` and `abide-postgres`. */}}

{{- define "abide.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "abide.operator.name" -}}{{ include "abide.fullname" . }}-operator{{- end -}}
{{- define "abide.reviewer.name" -}}{{ include "abide.fullname" . }}-token-reviewer{{- end -}}
{{- define "abide.postgres.name" -}}{{ include "abide.fullname" . }}-postgres{{- end -}}

{{- define "abide.encryption.name" -}}{{ include "abide.fullname" . }}-encryption{{- end -}}

{{/* Where the operator finds the root keys: name of a Secret. */}}
{{- define "abide.encryption.secret" -}}
{{- .Values.encryption.existingSecret | default (include "abide.encryption.name" .) -}}
{{- end -}}

{{/* Labels that select pods; never changed, selectors are immutable. Arguments: list CONTEXT COMPONENT. */}}
{{- define "abide.selectorLabels" -}}
app.kubernetes.io/name: abide
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of every object. Arguments: list CONTEXT COMPONENT. */}}
{{- define "abide.labels" -}}
{{- $context := index . 0 -}}
{{ include "abide.selectorLabels" . }}
app.kubernetes.io/version: {{ $context.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: abide
app.kubernetes.io/managed-by: {{ $context.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $context.Chart.Name $context.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Image reference. Arguments: list CONTEXT IMAGE. */}}
{{- define "abide.image" -}}
{{- $context := index . 0 -}}
{{- $shared := $context.Values.image -}}
{{- $image := index . 1 -}}
{{- with $shared.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{ $image.repository }}:{{ $image.tag | default $shared.tag | default $context.Chart.AppVersion }}
{{- with $image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{/* Where the operator finds the URL of Postgres: name and key of a Secret. */}}
{{- define "abide.postgres.secret" -}}
{{- if .Values.postgres.embedded.enabled -}}
{{- .Values.postgres.embedded.existingSecret | default (include "abide.postgres.name" .) -}}
{{- else -}}
{{- .Values.postgres.external.secretRef.name -}}
{{- end -}}
{{- end -}}

{{- define "abide.postgres.key" -}}
{{- if .Values.postgres.embedded.enabled }}url{{ else }}{{ .Values.postgres.external.secretRef.key }}{{ end -}}
{{- end -}}

{{/* Scheduling and pull settings that both pods take. Arguments: list CONTEXT VALUES. */}}
{{- define "abide.podSettings" -}}
{{- $context := index . 0 -}}
{{- $values := index . 1 -}}
{{- with $context.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* What the Pod Security level `restricted` asks of a container, and a read-only root. */}}
{{- define "abide.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
