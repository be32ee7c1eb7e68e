"""Launching: where a process stands in its job, the processes of one machine, and commands that start many machines.

Nothing here imports torch until a process has to be counted in GPUs or joins the others.
"""
