"""Storage: clips on disk, by the million, as shards that any number of machines write together."""

from bvdm_data.storage.formats import as_clip, read_shard
from bvdm_data.storage.plan import read_manifest
from bvdm_data.storage.shards import write_shards

__all__ = ["as_clip", "read_manifest", "read_shard", "write_shards"]
