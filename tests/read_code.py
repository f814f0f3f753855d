"The fingerprint of the library's code takes a second; a process that forks takes it once, for all that it forks."

from classimpression.core.provenance import modules_digest

modules_digest()
