"""vmap: functions of one example, mapped over batches: executor, rules, and the way in and out. Floor 5."""
