"""From a call to the plan of its launches, without a GPU. Floor 3."""
