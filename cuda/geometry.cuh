// What a kernel knows of its arrays. The host writes these structs (gspn2_cupy/_plan.py, GEOMETRY): every field is a long
// long, counted in elements. Arrays are seen as lines in scan order, so a direction is a choice of origin, line and cross:
// a scan that runs backwards over the image starts at its last line and has a negative step.
#pragma once

namespace gspn2 {

// An image per channel: element (b, c, t, i) is at origin + b·batch + c·channel + t·line + i·cross.
struct Image {
  long long origin, batch, channel, line, cross;

  __device__ __forceinline__ long long slice(long long b, long long c) const {
    return origin + b * batch + c * channel;
  }
  __device__ __forceinline__ long long pixel(long long t, long long i) const { return t * line + i * cross; }
};

// The three weights of each pixel: tap k (0, 1, 2) looks at cross index i + k - 1.
struct Taps {
  long long origin, batch, group, tap, line, cross;

  __device__ __forceinline__ long long slice(long long b, long long g) const { return origin + b * batch + g * group; }
  __device__ __forceinline__ long long pixel(long long t, long long i) const { return t * line + i * cross; }
};

// One line per channel, in the state's type: h0, h_last and their gradients.
struct Line {
  long long batch, channel, cross;

  __device__ __forceinline__ long long at(long long b, long long c, long long i) const {
    return b * batch + c * channel + i * cross;
  }
};

// The scan itself: `lines` lines of `width` pixels, restarting every `chunk` lines (chunk = lines when it never does).
// `along` is 1 when a line's pixels lie further apart than its successors (horizontal scans), so that neighbouring threads
// should walk along the scan to touch neighbouring addresses.
struct Scan {
  long long batch, channels, channels_per_group, lines, width, chunk, along;

  __device__ __forceinline__ long long pixels() const { return batch * channels * lines * width; }

  // The first line that has none before it, where lines are counted from the scan's start; an adjoint starts at the other end and
  // crosses the same seams. Then every `chunk` lines.
  __device__ __forceinline__ long long first_restart(bool adjoint, bool has_first) const {
    if (adjoint) return lines - (lines - 1) / chunk * chunk;
    return has_first ? chunk : 0;
  }
};

// A pixel, found by its number among Scan::pixels(), for kernels that look at every pixel for itself.
struct Place {
  long long b, c, t, i;

  __device__ __forceinline__ Place(const Scan& scan, long long number) {
    const long long area = scan.lines * scan.width;
    const long long slice = number / area, pixel = number % area;
    b = slice / scan.channels;
    c = slice % scan.channels;
    t = scan.along ? pixel % scan.lines : pixel / scan.width;
    i = scan.along ? pixel / scan.lines : pixel % scan.width;
  }
  template <typename Array>  // Image or Taps
  __device__ __forceinline__ long long in(const Array& array) const {
    return array.slice(b, c) + array.pixel(t, i);
  }
};

// How line_scan_tiles.cu cuts the work: a slice into `count` bands of `rows` rows, or a block over `units` whole slices.
struct Bands {
  long long count, rows, units;
};

// How line_scan_slices.cu copies runs of images and of weights: by 2, 4, 8 or 16 bytes at a time; and 2^32 over the vectors after
// which it lays them out in another way, rounded up; 0 where it never does. And in how many rounds a block does its work.
struct Runs {
  long long images, taps, turn, rounds;
};

struct Geometry {
  Scan scan;
  Bands bands;
  Runs runs;
  Image x, lam, h, u;  // h or what it is merged into, with strides that the sum so far has, too
  Taps weight;
  Line first, last;  // the state before the first line and after the last, or their gradients
};

// Of line_scan_gradients.cu.
struct GradientsGeometry {
  Scan scan;
  Image g, x, lam, h, before, dx, dlam;
  Line first;
  Taps dweight;
  long long blocks_across, blocks_down;  // of an image: side by side on rows in memory, and down the rows
  long long groups, run;                 // of an image's channels, and how many of a group's a thread has
};

// Of normalize.cu and normalize_backward.cu: `scan` has a channel for each group, and goes forwards.
struct NormalizeGeometry {
  Scan scan;
  Taps logits, weight, dweight, dlogits;
  long long blocks_across, blocks_down;  // of an image: side by side on rows in memory, and down the rows
};

// Of merge.cu and merge_gradient.cu, which have no direction: `scan` goes from top to bottom.
struct MergeGeometry {
  Scan scan;
  Image h, u, before, sum, states, dy;
  long long partials;  // blocks that share a sum over all pixels
};

// The weights of a projection: a row per output, a column per input.
struct Matrix {
  long long output, input;

  __device__ __forceinline__ long long at(long long o, long long i) const { return o * output + i * input; }
};

// Of projection.cu: `scan` counts the pixels of one channel, and the images' channels are the inputs or the outputs.
struct ProjectionGeometry {
  Scan scan;
  Image x, before, sum;
  Matrix weight;
  long long bias;  // its stride
  long long inputs, outputs;
};

// Of projection_gradient.cu, the same, in image order.
struct ProjectionGradientGeometry {
  Scan scan;
  Image g, x;
  long long inputs, outputs;
  long long shares;  // blocks that share a sum over all pixels
};

}  // namespace gspn2
