//! Facts of the machine and meters: processor, memory, limits, disks, ceilings, a sampling thread.
