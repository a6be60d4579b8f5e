"""
vLLM's encoder cache, which says how full it is: vLLM has no metric of it.

    --ec-manager-config '{"encoder_cache_manager_cls": "encoder_cache_log.LoggedEncoderCache",
                          "manager_config": {"path": FILE}}'

with this folder on PYTHONPATH. The file is one line of JSON, written again at each change: `size` of the cache in
visual tokens, `stored` of them, and `held` by requests that are not finished.
"""

import json
import os

from vllm.v1.core.encoder_cache_manager import EncoderCacheManager


LINE = 80  # bytes; one write of as many each time, so that no reader finds half of two


class LoggedEncoderCache(EncoderCacheManager):
    @classmethod
    def create_manager(cls, *, cache_size, vllm_config):
        manager = cls(cache_size)
        manager.file = os.open(vllm_config.ec_manager_config.manager_config["path"], os.O_WRONLY | os.O_CREAT)
        manager.log()
        return manager

    def log(self) -> None:
        stored, held = self.cache_size - self.num_free_slots, self.cache_size - self.num_freeable_slots
        line = json.dumps({"size": self.cache_size, "stored": stored, "held": held})
        os.pwrite(self.file, line.ljust(LINE).encode(), 0)

    def check_and_update_cache(self, request, input_id):
        is_known = super().check_and_update_cache(request, input_id)
        self.log()
        return is_known

    def allocate(self, request, input_id):
        super().allocate(request, input_id)
        self.log()

    def free_encoder_input(self, request, input_id):
        super().free_encoder_input(request, input_id)
        self.log()
