"""``nimbus.cloud.*``: the batch on Cloudflare's own engine. The Worker itself is in ``worker/``."""
