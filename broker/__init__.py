"""The parts of Everput that write the log and deliver messages. They import neither `api` nor `projections`."""
