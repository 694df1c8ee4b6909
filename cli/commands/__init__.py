"""The commands that `everput` has, a file each. Not for: servers (cli/processes), the demo, tunnels, exports."""
