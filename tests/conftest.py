import jax

# Before any computation: several tests place arrays on a mesh of virtual devices.
jax.config.update("jax_num_cpu_devices", 8)
