"""The Xet upload formats: functions of bytes, without SQL or HTTP.

`hashes` names things, `xorb` checks a block of chunks and makes its chunk table, `shard` reads how files are put
together from chunks, `rebuild` does it. Source: huggingface/hub-docs docs/xet, and what hf_xet 1.8.0 sends.
"""
