"""Everything kopf calls: login, startup and cleanup, watch events. Thin: translate, hand over, return."""
