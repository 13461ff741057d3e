"""Save what was trained, and load it again; in peft's own format where peft has the method.

A checkpoint is a folder with a JSON header and one safetensors file; nothing is ever unpickled.

* Methods that peft has: `adapter_config.json` and `adapter_model.safetensors`, as `PeftModel.save_pretrained` writes.
* Others: `tuning_config.json` and `tuning_model.safetensors`, our own header and the parameters by name. So are virtual
  tokens before a head that peft has no task for, such as that of multiple choice.

peft loads a file whose keys do not match without a word, and the adapter then does nothing. Our loader raises.
"""

from course_utils.checkpoints.errors import CheckpointError
from course_utils.checkpoints.folder import load, save

__all__ = ["CheckpointError", "load", "save"]
