"""The testbeds by name: modules that draw pictures and ask about them."""

import mosaics
import wide_mosaics


TESTBEDS = {"mosaics": mosaics, "wide_mosaics": wide_mosaics}
