"""Every parameter-efficient fine-tuning method from scratch, and what the course's labs need around it."""

import logging

from course_utils.lazy import front_door

# Where bitsandbytes is installed (the tests compare with it), accelerate imports it, and on some processors it says at
# once that an optional package for speed is missing. Nothing in the course uses that, and a lab should begin quietly.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
