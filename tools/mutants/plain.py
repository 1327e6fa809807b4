"""Mistakes in the plain scan, forward and backward, and in the kernels that look at each pixel for itself."""

from __future__ import annotations

from tools.mutants._mutant import Mutant, mutants

PLAIN: list[Mutant] = []

PLAIN += mutants(
    "geometry.cuh",
    ("forget the image of a line", "b * batch + c * channel + i * cross", "c * channel + i * cross"),
    ("forget the origin of an image", "return origin + b * batch + c * channel;", "return b * batch + c * channel;"),
    ("forget the group of a weight", "return origin + b * batch + g * group;", "return origin + b * batch;"),
    (
        "forget the stride of a state line",
        "return b * batch + c * channel + i * cross;",
        "return b * batch + c * channel + i;",
    ),
    ("swap lines and width", "lines, width, chunk, along;", "width, lines, chunk, along;"),
    ("one pixel too few", "return batch * channels * lines * width;", "return batch * channels * lines * width - 1;"),
    ("wrong image of a pixel", "b = slice / scan.channels;", "b = slice % scan.channels;"),
    ("wrong row of a pixel along", "i = scan.along ? pixel / scan.lines :", "i = scan.along ? pixel / scan.width :"),
    ("swap line and row of a pixel", "t = scan.along ? pixel % scan.lines :", "t = scan.along ? pixel / scan.width :"),
)

PLAIN += mutants(
    "state.cuh",
    ("truncate to float16", "__float2half_rn(", "__float2half_rz("),
    ("truncate to bfloat16", "__float2bfloat16_rn(", "__float2bfloat16_rz("),
    ("flip the sign of a float's summand", "fmaf(a, b, c)", "fmaf(a, b, -c)"),
    ("flip the sign of a double's summand", "fma(a, b, c)", "fma(a, b, -c)"),
)

PLAIN += mutants(
    "scan_tile.cuh",
    ("halo on one side only", "return THREADS - 2 * halo_of(width);", "return THREADS - halo_of(width);"),
    ("halo one row short", "return width <= THREADS ? 0 : LINES;", "return width <= THREADS ? 0 : LINES - 1;"),
    ("no halo", "return width <= THREADS ? 0 : LINES;", "return 0;"),
    ("forget the first own row", "return thread >= halo &&", "return thread > halo &&"),
    ("own a row of the halo above", "return thread >= halo &&", "return thread >= halo - 1 &&"),
    (
        "own a row of the halo below",
        "thread < THREADS - halo &&",
        "thread <= THREADS - halo &&",
        "the next band of the same block computes that row again, and overwrites it with the right value",
    ),
    ("own a row beyond the image", "first + thread < width;", "first + thread <= width;"),
    ("leave the outer cells unwritten", "exchange[k] = State(0);", ";"),
    ("outer cells in the wrong place", "which * (THREADS + 2) + 1;", "which * (THREADS + 2);"),
    ("weights over the signal", "shared + (k + 1) * LINES * PITCH;", "shared + k * LINES * PITCH;"),
    ("leave a tile's end unstaged", "k < LINES * THREADS;", "k < LINES * THREADS - THREADS;"),
    ("forget the border above", "inside && i > 0 ? widen(pixel[0])", "inside ? widen(pixel[0])"),
    (
        "forget the border below",
        "inside && i + 1 < scan.width ? widen(pixel[2 * taps.tap])",
        "inside ? widen(pixel[2 * taps.tap])",
    ),
    (
        "swap two weights",
        (("widen(pixel[0])", "widen(pixel[2 * taps.tap + 0])"), ("widen(pixel[2 * taps.tap])", "widen(pixel[0])")),
    ),
    ("use weights that restart", "i < scan.width && used(t);", "i < scan.width;"),
    ("stage lines past the end", "t < scan.lines && i >= 0", "i >= 0"),
)

PLAIN += mutants(
    "line_scan_forward.cu",
    (
        "swap two weights",
        (
            ("stage.weight[2][at], previous[1]", "stage.weight[0][at], previous[1]"),
            ("stage.weight[0][at], previous[-1]", "stage.weight[2][at], previous[-1]"),
        ),
    ),
    (
        "drop the barrier after staging",
        "      __syncthreads();\n\n      for (int n = 0; n < count; ++n) {",
        "      for (int n = 0; n < count; ++n) {",
    ),
    ("drop the barrier between lines", "State(0) : state;\n        __syncthreads();", "State(0) : state;"),
    (
        "drop the barrier before h leaves",
        "= state;\n      }\n      __syncthreads();",
        "= state;\n      }",
    ),
    ("one exchange line for two", "stage.line(n % 2)", "stage.line(0)"),
    ("use one weight for another", "stage.weight[2][at], previous[1]", "stage.weight[0][at], previous[1]"),
    ("swap two neighbours", (("previous[1],", "previous[-1],"), ("previous[-1], state", "previous[1], state"))),
    ("shift a neighbour by one", "previous[-1], state", "previous[0], state"),
    ("flip the sign of the signal", "previous[0], stage.signal[at]);", "previous[0], -stage.signal[at]);"),
    ("never restart", "t > 0 && t % scan.chunk == 0 ? State(0) : state;", "state;"),
    ("restart a line early", "t > 0 && t % scan.chunk == 0 ?", "t > 0 && (t + 1) % scan.chunk == 0 ?"),
    ("use the weights of every restart with h0", "|| (t == 0 && h0);", "|| h0;"),
    ("forget the first line's weights", "t % scan.chunk != 0 || (t == 0 && h0);", "t % scan.chunk != 0;"),
    ("forget h0", "if (inside && t0 == 0 && h0) state =", "if (inside && t0 == 0 && h0 && false) state ="),
    ("forget the line before a tile", "if (inside && t0 > 0) state =", "if (inside && t0 > LINES) state ="),
    ("overwrite the line before a tile", "lines + (1 - t0 / LINES % 2)", "lines + (t0 / LINES % 2)"),
    ("forget λ", "if (lam) value *=", "if (lam && false) value *="),
    ("skip h_last", "if (ends && h_last)", "if (ends && h_last && false)"),
    ("let rows outside the image live", "if (!inside) state = 0;", ""),
    ("shift h by a row", "geometry.h.pixel(t0 + n, band.first + r)", "geometry.h.pixel(t0 + n, band.first + r + 1)"),
    ("wrong group", "c / scan.channels_per_group", "c % scan.channels_per_group"),
    ("workspaces overlap", "blockIdx.x * 2 * scan.width", "blockIdx.x * scan.width"),
    ("write lines past the end", "if (n < count && band.owns", "if (band.owns"),
)

PLAIN += mutants(
    "line_scan_adjoint.cu",
    (
        "swap two weights",
        (
            ("*up = stage.weight[0][at]", "*up = stage.weight[2][at]"),
            ("*down = stage.weight[2]", "*down = stage.weight[0]"),
        ),
    ),
    (
        "drop the barrier after staging",
        "      __syncthreads();\n\n      for (int n = 0;",
        "      for (int n = 0;",
    ),
    ("drop the barrier between lines", "* value;\n        __syncthreads();", "* value;"),
    (
        "drop the barrier before g leaves",
        "= carry;\n      }\n      __syncthreads();",
        "= carry;\n      }",
    ),
    ("one exchange line up for two", "stage.line(n % 2)", "stage.line(0)"),
    ("one exchange line down for two", "stage.line(2 + n % 2)", "stage.line(2)"),
    ("use one weight for another", "*up = stage.weight[0][at]", "*up = stage.weight[2][at]"),
    ("not transposed", "up[1] + down[-1]", "up[-1] + down[1]"),
    ("flip the sign of the carry", "stage.signal[at] + carry", "stage.signal[at] - carry"),
    ("NaN crosses a restart", "if (t > 0 && (scan.lines - t) % scan.chunk == 0) carry = 0;", ""),
    ("restart a line early", "(scan.lines - t) % scan.chunk", "(scan.lines - t - 1) % scan.chunk"),
    ("restart where the scan does", "(scan.lines - t) % scan.chunk", "t % scan.chunk"),
    ("use no weights", "return true;", "return false;"),
    ("forget dh_last", "t0 == 0 && dh_last) carry", "t0 == 0 && dh_last && false) carry"),
    ("forget the line before a tile", "if (inside && t0 > 0) carry", "if (inside && t0 > LINES) carry"),
    ("overwrite the line before a tile", "lines + (1 - t0 / LINES % 2)", "lines + (t0 / LINES % 2)"),
    ("skip dh0", "if (ends && dh0)", "if (ends && dh0 && false)"),
    ("skip a tile's first line", "int n = 0; n < count", "int n = 1; n < count"),
    ("shift g by a line", "geometry.h.pixel(t0 + n, band.first + r)", "geometry.h.pixel(t0 + n - 1, band.first + r)"),
    ("let rows outside the image live", "inside ? stage.signal[at] + carry : State(0)", "stage.signal[at] + carry"),
)

PLAIN += mutants(
    "line_scan_gradients.cu",
    ("flip the sign of dx", ": factor * value.value[k])", ": -factor * value.value[k])"),
    ("forget what dx was before", "narrow<SUM>(before ?", "narrow<SUM>(false ?"),
    ("subtract what dx was before", "earlier.value[k])", "-earlier.value[k])"),
    ("flip the sign of dλ", "(signal.widened(k) * value", "(-signal.widened(k) * value"),
    (
        "flip the sign of dweight",
        "multiply_add(value.value[k], previous.value[tap][k]",
        "multiply_add(-value.value[k], previous.value[tap][k]",
    ),
    ("forget λ", "lam ? scale.widened(k) : State(1);", "State(1);"),
    ("read λ in the place of x", "signal = read_pack<VECTOR>(x +", "signal = read_pack<VECTOR>(lam +"),
    (
        "the layout of another array",
        "read_pack<VECTOR>(x + at(geometry.x, c))",
        "read_pack<VECTOR>(x + at(geometry.g, c))",
    ),
    # neighbours on the line before
    ("swap two neighbours along", "h + (tap == 1 ? 0 : steps[tap / 2])", "h + (tap == 1 ? 0 : steps[1 - tap / 2])"),
    ("the middle neighbour alone", "h + (tap == 1 ? 0 : steps[tap / 2])", "h"),
    (
        "not moved on by a line",
        "earlier < 0 || earlier == VECTOR ? before",
        "earlier < 0 && earlier == VECTOR ? before",
    ),
    ("moved on the wrong way", "REVERSED ? k + 1 : k - 1;", "REVERSED ? k - 1 : k + 1;"),
    ("backwards as forwards", "REVERSED ? k + 1 : k - 1;", "k - 1;"),
    ("the first pixel of all for the line before", "widen(row[back])", "own.widened(REVERSED ? VECTOR - 1 : 0)"),
    ("swap two neighbours across", "neighbour = k + tap - 1;", "neighbour = k + 1 - tap;"),
    ("forget the pixel above a vector", "neighbour < 0 ? above :", "neighbour < 0 ? own.widened(0) :"),
    ("forget the pixel below a vector", "neighbour == VECTOR ? below :", "neighbour == VECTOR ? above :"),
    ("shift h by a line", "(ALONG ? 0 : back), back, steps)", "0, back, steps)"),
    ("shift h by a line along", "(REVERSED ? -LINES : -1) * geometry.h.line", "(REVERSED ? -1 : -1) * geometry.h.line"),
    ("read a line before the first", "back = start == 0 ? 0 :", "back = start < 0 ? 0 :"),
    ("read a pixel above the image", "steps[2] = {above ? -geometry.h.cross : 0,", "steps[2] = {-geometry.h.cross,"),
    (
        "read a pixel below the image",
        "below ? ON_LINE * geometry.h.cross : 0}",
        "ON_LINE * geometry.h.cross}",
    ),
    ("the last pixel of a vector for the one below", "below ? ON_LINE * geometry", "below ? (ON_LINE - 1) * geometry"),
    ("forget the border above", "return step < 0 ? above :", "return step < 0 ? true :"),
    ("forget the border below", "step < ON_LINE || below;", "true;"),
    ("shift the border below by one", "below = i + ON_LINE < scan.width", "below = i + ON_LINE <= scan.width"),
    ("the border of a vector for each pixel", "exists(k % ON_LINE + tap - 1);", "exists(tap - 1);"),
    # lines
    ("lines in the order of memory", "REVERSED ? columns - 1 - column : column,", "column,"),
    ("the last line for the first", "start = REVERSED ? t - (LINES - 1) : t;", "start = t;"),
    ("never restart", "scan.chunk < scan.lines && line % static_cast<int>(scan.chunk) == 0;", "false;"),
    (
        "restart with the first pixel of a vector",
        "line = REVERSED ? t - k : t + k;",
        "line = REVERSED ? t - (LINES - 1) : t;",
    ),
    ("restart against memory", "line = REVERSED ? t - k : t + k;", "line = t + k;"),
    ("forget h0", "if (start == 0 && h0) {", "if (false) {"),
    ("h0 behind all lines", "if (start == 0 && h0) {", "if (h0) {"),
    ("h0 leads to no gradient", "line == 0 ? !h0 :", "line == 0 ? true :"),
    ("add h0 to what is there", "if (is_first(k)) sum[0]", "if (false) sum[0]"),
    ("h0 behind the other end of a vector", "(REVERSED ? LINES - 1 : 0); };", "(REVERSED ? 0 : LINES - 1); };"),
    (
        "h0 behind all pixels of a vector",
        "if (!is_first(k) || !exists(step)) continue;",
        "if (!exists(step)) continue;",
    ),
    ("h0 outside the image", "if (!is_first(k) || !exists(step)) continue;", "if (!is_first(k)) continue;"),
    ("swap two neighbours in h0", "step = k % ON_LINE + tap - 1;", "step = k % ON_LINE + 1 - tap;"),
    # blocks
    ("a vector too many", "if (column >= columns", "if (column > columns"),
    ("a row too many", "row >= rows) return;", "row > rows) return;"),
    ("vectors overlap", "threadIdx.x) * VECTOR;", "threadIdx.x) * (VECTOR / 2 + 1);"),
    ("the first block of a row for all", "(blockIdx.x % across * blockDim.x", "(blockIdx.x % 1 * blockDim.x"),
    ("the first blocks of an image for all", "across % down * blockDim.y", "across % 1 * blockDim.y"),
    ("wrong image", "b = slice / groups,", "b = slice % groups,"),
    ("wrong group", "group = slice % groups;", "group = slice % groups / 2;"),
    ("the group of another image", "geometry.dweight.slice(b, group)", "geometry.dweight.slice(b, slice)"),
    # sums
    ("only the last channel", "previous.value[tap][k], sum[tap].value[k]);", "previous.value[tap][k], State(0));"),
    ("the first run for all", "group * channels + run * length,", "group * channels,"),
    (
        "runs reach into the next group",
        "min(begin + length, static_cast<int>(group + 1) * channels);",
        "begin + length;",
    ),
    ("sums without a barrier", "__syncthreads();", ""),
    ("every run writes the sum", "if (run > 0) return;", ""),
    ("skip a run", "for (int other = 1; other < runs; ++other)", "for (int other = 2; other < runs; ++other)"),
    ("runs in another order", "sums[(other * 3 + tap) * lanes]", "sums[((runs - other) * 3 + tap) * lanes]"),
    (
        "runs overwrite each other",
        "sums[(run * 3 + tap) * lanes] = sum[tap];",
        "sums[(run * 2 + tap) * lanes] = sum[tap];",
    ),
    ("rows of a block overwrite each other", "+ threadIdx.y * blockDim.x + threadIdx.x;", "+ threadIdx.x;"),
    ("the first pixel's sum for all", "sum[tap].value[k] += more.value[k];", "sum[tap].value[k] += more.value[0];"),
    ("swap two weights", "to += geometry.dweight.tap;", "to -= geometry.dweight.tap;"),
)

PLAIN += mutants(
    "merge.cu",
    ("the next pixels of h", "read_pack<PACK>(h + at(geometry.h))", "read_pack<PACK>(h + at(geometry.h) + PACK)"),
    ("one pixel too many", "if (number >= geometry", "if (number > geometry"),
    ("keep the sum instead of h", "narrow<SCALAR>(hidden.widened(k))", "narrow<SCALAR>(total)"),
    ("the layout of another array", "sum + at(geometry.sum)", "sum + at(geometry.h)"),
    ("the first image for all", "blockIdx.y * image.batch + number", "number"),
    ("packs overlap", "threadIdx.x) * PACK;", "threadIdx.x);"),
    (
        "pixels of all images in each",
        "geometry.scan.pixels() / (PACK > 1 ? geometry.scan.batch : 1)",
        "geometry.scan.pixels()",
    ),
)

PLAIN += mutants(
    "merge_term.cuh",
    ("forget u", "HAS_U ? u.widened(k) * h.widened(k)", "HAS_U ? h.widened(k)"),
    ("forget m", "m ? widen(*m) : State(1)", "State(1)"),
    ("flip the sign of the sum so far", "modulated, before.value[k])", "modulated, -before.value[k])"),
    ("the first pixel of a pack for all", "u.widened(k) *", "u.widened(0) *"),
    ("forget the sum so far", "merge.before ? multiply_add", "merge.before && false ? multiply_add"),
    ("u at the place of the sum", "merge.u + u_at", "merge.u + before_at"),
)

PLAIN += mutants(
    "merge_gradient.cu",
    ("drop the barrier", "    __syncthreads();\n", ""),
    ("one thread too many", "if (threadIdx.x < half)", "if (threadIdx.x <= half)"),
    ("one pair too few", "half > 0; half /= 2", "half > 1; half /= 2"),
    ("shift a partner by one", "sums[threadIdx.x + half];", "sums[threadIdx.x + half - 1];"),
    ("skip pixels", "number += geometry.partials * THREADS", "number += (geometry.partials + 1) * THREADS"),
    ("skip partial sums", "block += THREADS)", "block += 2 * THREADS)"),
    ("another thread's sum", "if (threadIdx.x == 0) partials", "if (threadIdx.x == 1) partials"),
    ("all threads write the result", "if (threadIdx.x == 0) *dm", "*dm"),
    ("forget u", "u ? widen(u[place.in(geometry.u)]) : State(1)", "State(1)"),
    ("flip a sign", "const double product = widen", "const double product = -widen"),
    ("one pixel too many", "number < pixels;", "number <= pixels;"),
)

PLAIN += mutants(
    "projection.cu",
    ("forget the bias", "if (bias) total +=", "if (false) total +="),
    ("forget the sum so far", "if (before) total +=", "if (false) total +="),
    ("forget the stride of the bias", "bias[output * geometry.bias]", "bias[output]"),
    ("drop the first barrier", "    __syncthreads();\n    for (int entry", "    for (int entry"),
    ("drop the second barrier", "    __syncthreads();\n    if (!inside) continue;", "    if (!inside) continue;"),
    ("one pixel too many", "const bool inside = number < geometry", "const bool inside = number <= geometry"),
    (
        "swap rows and columns of a tile",
        "start + entry / OUTPUTS, output = first + entry % OUTPUTS",
        "start + entry % INPUTS, output = first + entry / INPUTS",
    ),
    ("read weights beyond the last output", "input < inputs && output < outputs", "input < inputs"),
    ("read weights beyond the last input", "input < inputs && output < outputs", "output < outputs"),
    ("write outputs beyond the last", "if (output >= outputs) break;", "if (output > outputs) break;"),
    (
        "a partial tile is taken for a whole one",
        "inputs - start < INPUTS ? static_cast<int>(inputs - start) : INPUTS",
        "INPUTS",
    ),
    ("inputs of the first tile only", "pixel[(start + i) * geometry.x.channel]", "pixel[i * geometry.x.channel]"),
    ("skip a tile of inputs", "start += INPUTS)", "start += 2 * INPUTS)"),
    ("another tile of outputs", "blockIdx.x % tiles", "blockIdx.x / tiles"),
    (
        "the layout of another array",
        "place.in(geometry.sum) + output * geometry.sum.channel",
        "place.in(geometry.before) + output * geometry.before.channel",
    ),
    ("flip a sign", "value[k] = multiply_add(tile[", "value[k] = multiply_add(-tile["),
)

PLAIN += mutants(
    "projection_gradient.cu",
    ("flip a sign", "sum += step;", "sum -= step;"),
    ("drop the first barrier", "    __syncthreads();\n    stage(of_g", "    stage(of_g"),
    ("drop the second barrier", "    __syncthreads();\n    State step = 0;", "    State step = 0;"),
    ("forget the bias", "if (inside && channel == one) value = 1;", ""),
    (
        "count pixels that are not there into the bias",
        "if (inside && channel == one) value = 1;",
        "if (channel == one) value = 1;",
        "g is 0 there",
    ),
    ("one pixel too many", "const bool inside = number < pixels;", "const bool inside = number <= pixels;"),
    (
        "read channels beyond the last",
        "if (inside && channel < channels) value =",
        "if (inside && channel <= channels) value =",
    ),
    ("half of the rows", "row += THREADS / STEP)", "row += 2 * THREADS / STEP)"),
    ("skip pixels", "start += geometry.shares * STEP)", "start += (geometry.shares + 1) * STEP)"),
    ("shares overlap", "long long start = share * STEP;", "long long start = 0;"),
    (
        "swap the tiles",
        "of_g[row * (STEP + 1) + k], of_x[column * (STEP + 1) + k]",
        "of_g[column * (STEP + 1) + k], of_x[row * (STEP + 1) + k]",
    ),
    ("one product too few", "for (int k = 0; k < STEP; ++k)", "for (int k = 1; k < STEP; ++k)"),
    ("the last step alone", "sum += step;", "sum = step;"),
    (
        "write beyond the last output",
        "if (output < geometry.outputs && input < columns)",
        "if (input < columns)",
    ),
    (
        "write beyond the last input",
        "if (output < geometry.outputs && input < columns)",
        "if (output < geometry.outputs)",
    ),
    (
        "another share's place",
        "partials[(share * geometry.outputs + output)",
        "partials[((geometry.shares - 1 - share) * geometry.outputs + output)",
        "shares are summed in another order, the same in every run",
    ),
    ("one entry too many", "if (entry >= entries) return;", "if (entry > entries) return;"),
    ("skip the first share", "for (long long share = 0;", "for (long long share = 1;"),
    ("the bias in the place of a weight", "input < geometry.inputs ? dweight", "input <= geometry.inputs ? dweight"),
)

PLAIN += mutants(
    "stable_weights.cuh",
    ("a limit of -41", "LOWEST = -40;", "LOWEST = -41;"),
    ("NaN is limited", "return z < LOWEST ? LOWEST : z;", "return z > LOWEST ? z : LOWEST;"),
    ("forget the border above", "inside{pixels.i + number * pixels.step > 0, true,", "inside{true, true,"),
    (
        "the border above by the vector",
        "inside{pixels.i + number * pixels.step > 0, true,",
        "inside{pixels.i > 0, true,",
    ),
    ("forget the border below", "pixels.i + number * pixels.step + 1 < pixels.width}", "true}"),
    (
        "shift the border below by one",
        "pixels.i + number * pixels.step + 1 < pixels.width}",
        "pixels.i + number * pixels.step + 2 < pixels.width}",
    ),
    (
        "the border below by the vector",
        "pixels.i + number * pixels.step + 1 < pixels.width}",
        "pixels.i + 1 < pixels.width}",
    ),
    ("pixels on successive lines share one", "step = scan.along ? 0 : 1;", "step = 1;"),
    ("pixels of one line lie on several", "step = scan.along ? 0 : 1;", "step = 0;"),
    ("the first pixel's logits for all", "logits.tap[k].widened(number)", "logits.tap[k].widened(0)"),
    ("ignore a logit in the largest", "if (inside[2] && logit[2] > largest) largest = logit[2];", ""),
    ("let an outside logit be the largest", "if (inside[0] && logit[0] > largest)", "if (logit[0] > largest)"),
    ("wrong slope", "return quotient(decay, size,", "return quotient(1, size,"),
    (
        "flip the limit's side",
        "bool beyond(State z) { return z < LOWEST; }",
        "bool beyond(State z) { return z > LOWEST; }",
    ),
    ("forget to divide by the sum", "weight[k] = inside[k] ? value : State(0);", "weight[k] = numerator[k];"),
    ("weights of neighbours outside", "weight[k] = inside[k] ? value : State(0);", "weight[k] = value;"),
    ("sum over neighbours outside", "sum += numerator[k];", "sum += inside[k] ? numerator[k] : State(1);"),
    (
        "numerators of neighbours outside",
        "numerator[k] = inside[k] ? value : State(0);",
        "numerator[k] = value;",
    ),
    ("exp overflows", "exponential(z - largest)", "exponential(z)"),
    ("Softmax with a slope", "slope(State) { return 1; }", "slope(State) { return 2; }"),
    (
        "flip the sign of a logit",
        "reciprocal(1 + exponential(-limited(z)))",
        "reciprocal(1 + exponential(limited(z)))",
    ),
    (
        "a quotient that is not rounded right",
        "return multiply_add(multiply_add(-b, near, a), inverse, near);",
        "return near;",
    ),
    ("small quotients lose digits", "SAME<State, float> ? 0x1p64 : 1;", "1;"),
    ("scaled and not back", "sum, inverse) * (1 / SCALE);", "sum, inverse);"),
    ("blocks side by side overlap", "blockIdx.x % across * blockDim.x", "blockIdx.x % across * (blockDim.x - 1)"),
    ("threads side by side overlap", "+ threadIdx.x) * VECTOR;", "+ threadIdx.x) * 1;"),
    ("the rows of one block only", "% down * blockDim.y + threadIdx.y;", "% down + threadIdx.y;"),
    ("the images of one block only", "/ down * blockDim.z + threadIdx.z;", "/ down + threadIdx.z;"),
    (
        "group and image exchanged",
        (("b = image / groups;", "b = image % groups;"), ("g = image % groups;", "g = image / groups;")),
    ),
    ("an image too many", "exist = b < scan.batch &&", "exist = b <= scan.batch &&"),
    ("a line too many", "t < scan.lines &&", "t <= scan.lines &&"),
    ("a row of pixels too many", "i < width;", "i <= width;"),
    ("one logit for all neighbours", "read_pack<VECTOR>(from + k * taps.tap)", "read_pack<VECTOR>(from)"),
    ("write all neighbours in one place", "to += taps.tap;", ""),
    ("the first pixel's result for all", "narrow<T>(values[k][p])", "narrow<T>(values[k][0])"),
)

PLAIN += mutants(
    "normalize.cu",
    ("no end", "if (!pixels.exist) return;", ""),
    ("swap two weights", "result[k][p] = neighbours.weight[k];", "result[k][p] = neighbours.weight[2 - k];"),
    ("the layout of another array", "pixels.write(weight, geometry.weight,", "pixels.write(weight, geometry.logits,"),
    ("the first pixel's weights for all", "neighbours(pixels, p, logit)", "neighbours(pixels, 0, logit)"),
)

PLAIN += mutants(
    "normalize_backward.cu",
    ("swap two gradients", "upstream.tap[k].widened(p)", "upstream.tap[2 - k].widened(p)"),
    ("no end", "if (!pixels.exist) return;", ""),
    ("the first pixel's gradients for all", "upstream.tap[k].widened(p)", "upstream.tap[k].widened(0)"),
    ("flip the sign of the mean", "(gradient[k] - mean)", "(gradient[k] + mean)"),
    ("forget the slope", "- mean) * slope;", "- mean);"),
    (
        "gradient beyond the limit",
        "neighbours.inside[k] && !METHOD::beyond(neighbours.logit[k]);",
        "neighbours.inside[k];",
    ),
    (
        "look at gradients outside",
        "neighbours.inside[k] ? upstream.tap[k].widened(p) : State(0);",
        "upstream.tap[k].widened(p);",
    ),
    (
        "the layout of another array",
        "pixels.write(dlogits, geometry.dlogits,",
        "pixels.write(dlogits, geometry.dweight,",
    ),
    (
        "only the last neighbour's mean",
        "multiply_add(neighbours.weight[k], gradient[k], mean)",
        "neighbours.weight[k] * gradient[k]",
    ),
    ("write outside neighbours' gradients", "reached ? value : State(0)", "value"),
)
