"""One file a contestant: functions of the problem that return ``run(first step, number of steps) -> mean loss``."""
