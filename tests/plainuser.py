"""Commands as a user without rights beyond the files' own."""

import os

# Permissions hold for root too, once it gives up the right to pass over them.
PLAIN_USER = (
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search",
     "--inh-caps=-dac_override,-dac_read_search", "--"]
    if os.geteuid() == 0 else []
)  # fmt: skip
