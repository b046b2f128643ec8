"""Further distillation methods, one file each. Part of udkd.losses."""
