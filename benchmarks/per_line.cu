// The baseline of GSPN-1's method (arXiv 2501.12381; our own writing): one launch per line of the scan. A thread computes
// one pixel of the line for one image and channel, and finds the line before it in the output, in device memory.
//   h[t,i] = w0[t,i] h[t-1,i-1] + w1[t,i] h[t-1,i] + w2[t,i] h[t-1,i+1] + lam[t,i] x[t,i]
// Bytes per line: x, lam and h of the line, three weights, h of the line before. For horizontal scans neighbouring threads
// are a row apart, so each value is read as a sector of 32 bytes.
extern "C" __global__ void per_line(const float* x, const float* weight, const float* lam, float* h, long long images,
                                    long long channels, long long groups, long long lines, long long width,
                                    long long line_stride, long long cross_stride, long long line, long long before) {
  const long long index = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
  if (index >= images * channels * width) return;
  const long long i = index % width, channel = index / width % channels, image = index / (width * channels);
  const long long pixels = lines * width, plane = (image * channels + channel) * pixels;
  const long long at = plane + line * line_stride + i * cross_stride;
  float value = lam[at] * x[at];
  if (before >= 0) {
    const float* w =
        weight + (image * groups + channel / (channels / groups)) * 3 * pixels + line * line_stride + i * cross_stride;
    const float* last = h + plane + before * line_stride + i * cross_stride;
    if (i > 0) value += w[0] * last[-cross_stride];
    value += w[pixels] * last[0];
    if (i + 1 < width) value += w[2 * pixels] * last[cross_stride];
  }
  h[at] = value;
}
