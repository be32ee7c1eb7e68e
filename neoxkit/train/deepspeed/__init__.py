"""DeepSpeed behind the engine protocol: ZeRO, offload, pipelines. Nothing else imports it."""
