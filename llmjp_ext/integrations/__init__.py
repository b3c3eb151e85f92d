"""Bridges to other libraries. The only part of llmjp_ext that may import Transformers or PEFT."""
