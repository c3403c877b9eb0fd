"""The key-value stores behind one interface; the only place that knows SQLite or Cloudflare."""
