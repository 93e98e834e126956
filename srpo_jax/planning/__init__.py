"""What a run would cost on a machine that is not here: its real programs, compiled by the TPU's compiler.

`machine` names topologies and describes their chips; `lowering` makes the programs of a configuration;
`compiling` compiles one and reads what the compiler says, with `hlo_cost` and `kernel_schedule`; `roofline`
makes seconds of it.
"""
