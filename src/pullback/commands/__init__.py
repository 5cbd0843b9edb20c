"""What the commands of ``pullback`` do: one module a command, each with ``run(options)``; loaded when it is called."""
