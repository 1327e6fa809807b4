// The host's loop of the per-line baseline, in C++ as in the published code: one cuLaunchKernel per line.
using Launch = int (*)(void* function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned shared,
                       void* stream, void** arguments, void** extra);

// pointers: x, weight, lam, h; sizes: images, channels, groups, lines, width, line stride, cross stride
extern "C" int launch_lines(void* launch, void* function, unsigned blocks, unsigned threads, void* stream,
                            void** pointers, long long* sizes, int reversed) {
  const long long lines = sizes[3];
  for (long long t = 0; t < lines; ++t) {
    long long line = reversed ? lines - 1 - t : t;
    long long before = t == 0 ? -1 : reversed ? line + 1 : line - 1;
    void* arguments[13];
    for (int i = 0; i < 4; ++i) arguments[i] = pointers + i;
    for (int i = 0; i < 7; ++i) arguments[4 + i] = sizes + i;
    arguments[11] = &line;
    arguments[12] = &before;
    const int status =
        reinterpret_cast<Launch>(launch)(function, blocks, 1, 1, threads, 1, 1, 0, stream, arguments, nullptr);
    if (status != 0) return status;
  }
  return 0;
}
