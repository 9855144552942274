{{/* Values that fit the schema but not each other, or not what is installed: one sentence each, with the remedy. */}}
{{- define "abide.guards" -}}
{{- $embedded := .Values.postgres.embedded -}}
{{- $external := .Values.postgres.external -}}
{{- if and $embedded.enabled $external.secretRef.name -}}
{{- fail (printf "\n\npostgres: both an embedded and an external Postgres are configured; keep one: set postgres.embedded.enabled=false to use the one of Secret %s, or leave postgres.external.secretRef.name empty.\n" $external.secretRef.name) -}}
{{- end -}}
{{- if not (or $embedded.enabled $external.secretRef.name) -}}
{{- fail "\n\npostgres: no Postgres is configured; set postgres.embedded.enabled=true for one made by this chart, or postgres.external.secretRef.name to a Secret with the URL of yours.\n" -}}
{{- end -}}
{{- if and $external.directKey (not $external.secretRef.name) -}}
{{- fail "\n\npostgres: postgres.external.directKey is a key in the Secret postgres.external.secretRef.name, which is empty; set both or neither.\n" -}}
{{- end -}}
{{- if and $embedded.existingSecret (not $embedded.enabled) -}}
{{- fail "\n\npostgres: postgres.embedded.existingSecret is set but postgres.embedded.enabled is false; for a Postgres of yours set postgres.external.secretRef.name instead.\n" -}}
{{- end -}}
{{- if $embedded.enabled -}}
{{- $name := include "abide.postgres.name" . -}}
{{- $installed := lookup "apps/v1" "StatefulSet" .Release.Namespace $name -}}
{{- range dig "spec" "volumeClaimTemplates" list $installed -}}
{{- $size := .spec.resources.requests.storage -}}
{{- $class := .spec.storageClassName | default "" -}}
{{- if ne $size $embedded.storage.size -}}
{{- fail (printf "\n\npostgres: postgres.embedded.storage.size is %s but the volume was made with %s, and a chart cannot resize it. Set it back, or, where the StorageClass allows expansion: kubectl patch pvc data-%s-0 -n %s -p '{\"spec\":{\"resources\":{\"requests\":{\"storage\":\"%s\"}}}}', then kubectl delete statefulset %s -n %s --cascade=orphan, and upgrade again.\n" $embedded.storage.size $size $name $.Release.Namespace $embedded.storage.size $name $.Release.Namespace) -}}
{{- end -}}
{{- if and $embedded.storage.className (ne $class $embedded.storage.className) -}}
{{- fail (printf "\n\npostgres: postgres.embedded.storage.className is %s but the volume was made with class %q, and it cannot be changed; set it back.\n" $embedded.storage.className $class) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
