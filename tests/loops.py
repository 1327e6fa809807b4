"""The operator as plain Python loops over float64 numbers, written from its definition and from nothing else.

Slow and independent of the package: the truth that every backend is judged against at small sizes. `t` counts lines in
scan order, `i` runs across the scan, `j = i + k - 1` is neighbour `k` of `i` on the previous line.
"""

import math
from collections import namedtuple

import numpy as np

LineScanTruth = namedtuple("LineScanTruth", "x weight lam h0")
PropagateTruth = namedtuple("PropagateTruth", "x weight lam u merge")


def pixel(direction, t, i, height, width):
    """(row, column) in the image of element `i` of line `t`."""
    match direction:
        case "left_to_right":
            return i, t
        case "right_to_left":
            return i, width - 1 - t
        case "top_to_bottom":
            return t, i
        case "bottom_to_top":
            return height - 1 - t, i
    raise ValueError(direction)


def extent(direction, height, width):
    """(number of lines, pixels in a line)."""
    return (width, height) if direction in ("left_to_right", "right_to_left") else (height, width)


def has_previous_line(t, chunk, h0):
    """Whether line `t` has a line before it: a chunk starts afresh, the first one from h0."""
    if t == 0:
        return h0 is not None
    return chunk is None or t % chunk != 0


def neighbours(i, across):
    """(k, j) of the neighbours of `i` that exist."""
    return [(k, i + k - 1) for k in range(3) if 0 <= i + k - 1 < across]


def numbers(array):
    """A float64 array as nested lists of Python floats, or None."""
    return None if array is None else np.asarray(array).astype(np.float64).tolist()


def line_scan(x, weight, lam=None, *, direction, chunk=None, h0=None):
    """h[t,i] = w0·h[t-1,i-1] + w1·h[t-1,i] + w2·h[t-1,i+1] + lam·x; returns (h, h_last)."""
    batch, channels, height, width = np.shape(x)
    groups = np.shape(weight)[1]
    lines, across = extent(direction, height, width)
    h = np.zeros((batch, channels, height, width))
    h_last = np.zeros((batch, channels, across))
    x, weight, lam, h0 = numbers(x), numbers(weight), numbers(lam), numbers(h0)
    for b in range(batch):
        for c in range(channels):
            w = weight[b][c // (channels // groups)]
            previous = h0[b][c] if h0 is not None else [0.0] * across
            for t in range(lines):
                line = []
                for i in range(across):
                    row, column = pixel(direction, t, i, height, width)
                    value = x[b][c][row][column]
                    if lam is not None:
                        value = lam[b][c][row][column] * value
                    if has_previous_line(t, chunk, h0):
                        for k, j in neighbours(i, across):
                            value += w[k][row][column] * previous[j]
                    h[b, c, row, column] = value
                    line.append(value)
                previous = line
            h_last[b, c] = previous
    return h, h_last


def line_scan_backward(dh, x, weight, lam=None, h=None, *, direction, chunk=None, h0=None, dh_last=None):
    """The gradients of `line_scan` for the upstream gradients dh of h and dh_last of h_last."""
    batch, channels, height, width = np.shape(x)
    groups = np.shape(weight)[1]
    lines, across = extent(direction, height, width)
    if h is None:
        h, _ = line_scan(x, weight, lam, direction=direction, chunk=chunk, h0=h0)
    dx = np.zeros((batch, channels, height, width))
    dlam = np.zeros((batch, channels, height, width))
    dweight = np.zeros((batch, groups, 3, height, width))
    dh0 = np.zeros((batch, channels, across))
    dh, x, weight, lam, h, h0, dh_last = map(numbers, (dh, x, weight, lam, h, h0, dh_last))
    for b in range(batch):
        for c in range(channels):
            group = c // (channels // groups)
            w = weight[b][group]
            carry = dh_last[b][c] if dh_last is not None else [0.0] * across
            for t in reversed(range(lines)):
                next_carry = [0.0] * across
                for i in range(across):
                    row, column = pixel(direction, t, i, height, width)
                    g = dh[b][c][row][column] + carry[i]
                    dx[b, c, row, column] = g if lam is None else lam[b][c][row][column] * g
                    dlam[b, c, row, column] = x[b][c][row][column] * g
                    if not has_previous_line(t, chunk, h0):
                        continue
                    for k, j in neighbours(i, across):
                        next_carry[j] += w[k][row][column] * g
                        if t == 0:
                            neighbour = h0[b][c][j]
                        else:
                            r, s = pixel(direction, t - 1, j, height, width)
                            neighbour = h[b][c][r][s]
                        dweight[b, group, k, row, column] += g * neighbour
                carry = next_carry
            dh0[b, c] = carry
    return LineScanTruth(dx, dweight, None if lam is None else dlam, None if h0 is None else dh0)


def sigmoid(z):
    return 1.0 / (1.0 + math.exp(-z))


def pixel_weights(logits, inside, method):
    """The weights of one pixel: {k: w_k} over the neighbours inside the image."""
    if method == "sigmoid":
        raw = {k: sigmoid(-40.0 if logits[k] < -40.0 else logits[k]) for k in inside}
    else:
        largest = max(logits[k] for k in inside)
        raw = {k: math.exp(logits[k] - largest) for k in inside}
    total = sum(raw.values())
    return {k: value / total for k, value in raw.items()}


def pixels_with_neighbours(shape, direction):
    """(b, g, row, column, the k that exist) of every pixel of an array (B, G, 3, H, W)."""
    batch, groups, _, height, width = shape
    lines, across = extent(direction, height, width)
    for b in range(batch):
        for g in range(groups):
            for t in range(lines):
                for i in range(across):
                    row, column = pixel(direction, t, i, height, width)
                    yield b, g, row, column, [k for k, _ in neighbours(i, across)]


def normalize_weights(logits, *, direction, method="sigmoid"):
    """Row-stochastic weights over the neighbours inside the image; 0 for the others."""
    logits = np.asarray(logits).astype(np.float64)
    weight = np.zeros(logits.shape)
    for b, g, row, column, inside in pixels_with_neighbours(logits.shape, direction):
        for k, w in pixel_weights(logits[b, g, :, row, column].tolist(), inside, method).items():
            weight[b, g, k, row, column] = w
    return weight


def normalize_weights_backward(dweight, logits, *, direction, method="sigmoid"):
    """dz_k = w_k·(1 - sigma(z_k), or 1 for softmax)·(dw_k - sum_j w_j·dw_j); 0 below -40 and outside the image."""
    logits = np.asarray(logits).astype(np.float64)
    dweight = np.asarray(dweight).astype(np.float64)
    dlogits = np.zeros(logits.shape)
    for b, g, row, column, inside in pixels_with_neighbours(logits.shape, direction):
        z = logits[b, g, :, row, column].tolist()
        dw = dweight[b, g, :, row, column].tolist()
        w = pixel_weights(z, inside, method)
        mean = sum(w[k] * dw[k] for k in inside)
        for k in inside:
            if method == "softmax":
                dlogits[b, g, k, row, column] = w[k] * (dw[k] - mean)
            elif not z[k] < -40.0:
                dlogits[b, g, k, row, column] = w[k] * (1.0 - sigmoid(z[k])) * (dw[k] - mean)
    return dlogits


def along(array, d):
    """Direction `d` of an optional array (B, D, ...)."""
    return None if array is None else np.asarray(array)[:, d]


def direction_weights(weight, directions, normalize):
    """The list of the directions' weights, normalised where asked."""
    return [
        along(weight, d) if normalize is None else normalize_weights(along(weight, d), direction=name, method=normalize)
        for d, name in enumerate(directions)
    ]


def propagate(x, weight, lam=None, u=None, *, directions, merge=None, normalize=None, chunk=None):
    """y = sum_d m_d·u_d·h_d; returns (y, states)."""
    weights = direction_weights(weight, directions, normalize)
    y = np.zeros(np.shape(x))
    states = np.zeros((y.shape[0], len(directions), *y.shape[1:]))
    for d, direction in enumerate(directions):
        states[:, d], _ = line_scan(x, weights[d], along(lam, d), direction=direction, chunk=chunk)
        factor = 1.0 if merge is None else float(merge[d])
        y += factor * (1.0 if u is None else along(u, d).astype(np.float64)) * states[:, d]
    return y, states


def propagate_backward(
    dy, x, weight, lam=None, u=None, *, directions, merge=None, normalize=None, chunk=None, states=None
):
    """The gradients of `propagate` for the upstream gradient dy; the last result is sum |dy·u·h| per direction."""
    weights = direction_weights(weight, directions, normalize)
    if states is None:
        _, states = propagate(x, weight, lam, u, directions=directions, normalize=normalize, chunk=chunk)
    dy = np.asarray(dy).astype(np.float64)
    dx = np.zeros(np.shape(x))
    dweight, dlam, du = np.zeros(np.shape(weight)), np.zeros(states.shape), np.zeros(states.shape)
    dmerge, merge_scale = np.zeros(len(directions)), np.zeros(len(directions))
    for d, direction in enumerate(directions):
        h = along(states, d).astype(np.float64)
        m = 1.0 if merge is None else float(merge[d])
        factor = np.ones(dy.shape) if u is None else along(u, d).astype(np.float64)
        grads = line_scan_backward(m * factor * dy, x, weights[d], along(lam, d), h, direction=direction, chunk=chunk)
        dx += grads.x
        if normalize is None:
            dweight[:, d] = grads.weight
        else:
            dweight[:, d] = normalize_weights_backward(
                grads.weight, along(weight, d), direction=direction, method=normalize
            )
        if lam is not None:
            dlam[:, d] = grads.lam
        du[:, d] = m * dy * h
        dmerge[d] = np.sum(dy * factor * h)
        merge_scale[d] = np.sum(np.abs(dy * factor * h))
    truth = PropagateTruth(
        dx,
        dweight,
        None if lam is None else dlam,
        None if u is None else du,
        None if merge is None else dmerge,
    )
    return truth, merge_scale
