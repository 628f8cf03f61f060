// The position of a thread in a launch.
#pragma once

namespace rnnkernels::device {

struct Place {
  int thread, threads;  // index within the block; threads per block
  int block, blocks;    // index within the grid; blocks of the grid
  int cluster_rank, cluster_size;
};

}  // namespace rnnkernels::device
