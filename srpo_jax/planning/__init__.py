"""What a run would cost on TPUs or GPUs that are not here, by their own compilers.

`machine` names topologies and describes their chips; `lowering` makes the programs of a configuration;
`compiling` compiles one and reads what the compiler says, with `hlo_cost` and `kernel_schedule`; `roofline`
makes seconds of it. `gpu` is for GPUs, whose compiler estimates no times.

May import: what the programs that it compiles are made of. Imported by: plan, and benchmarks.
"""
