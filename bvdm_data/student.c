/* The student of synth/denoiser.py in float32, for vectors of LANES numbers; pixels.c includes this
   file once for each length, and has what all share. */

#define PASTE(name, lanes) name##_##lanes
#define NAME(name, lanes) PASTE(name, lanes)
#define Lanes NAME(Lanes, LANES)
#define Whole NAME(Whole, LANES)
#define choose NAME(choose, LANES)
#define silu NAME(silu, LANES)
#define multiply NAME(multiply, LANES)
#define transform NAME(transform, LANES)
#define gather NAME(gather, LANES)
#define finish NAME(finish, LANES)
#define convolve NAME(convolve, LANES)
#define shrink NAME(shrink, LANES)
#define grow NAME(grow, LANES)

#define INLINE static inline __attribute__((always_inline))
/* Rows of numbers whose sums are kept in registers. */
#define TILES (LANES < 16 ? 6 : 12)

typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Whole __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Return one of two numbers, in each lane. */
INLINE Lanes choose(Whole which, Lanes yes, Lanes no) {
    return (Lanes)((which & (Whole)yes) | (~which & (Whole)no));
}

/* Return x / (1 + exp(-x)), to within 1e-6 of x. */
INLINE Lanes silu(Lanes x) {
    const Lanes whole = (Lanes){} + 12582912.0f, most = (Lanes){} + 126.0f;
    Lanes t = x * -1.44269504f;
    t = choose(t > most, most, choose(t < -most, -most, t));
    Lanes k = t + whole, f = t - (k - whole);
    Lanes p = 0.0013333558f * f + 0.0096181291f;
    p = p * f + 0.055504109f;
    p = p * f + 0.240226507f;
    p = p * f + 0.693147181f;
    p = p * f + 1.0f;
    return x / (1.0f + p * (Lanes)(((Whole)k - (0x4B400000 - 127)) << 23));
}

/* Sum the products of rows of numbers, `step` apart, and weights, on top of `sums` or anew. */
INLINE void multiply(
    const float *rows, int64_t step, int64_t length, const Lanes *weights, int64_t stride, int anew,
    Lanes *sums
) {
    Lanes sum[TILES];
    for (int t = 0; t < TILES; t++) sum[t] = anew ? (Lanes){} : sums[t];
    for (int64_t k = 0; k < length; k++) {
        Lanes weight = weights[k * stride];
        for (int t = 0; t < TILES; t++) sum[t] += rows[t * step + k] * weight;
    }
    for (int t = 0; t < TILES; t++) sums[t] = sum[t];
}

/* Of Winograd's algorithm: six numbers of the input, transformed along one axis. */
INLINE void transform(const Lanes *d, int step, Lanes *t, int by) {
    Lanes a = d[4 * step] - 4.0f * d[2 * step], b = d[3 * step] - 4.0f * d[step];
    Lanes c = d[4 * step] - d[2 * step], e = 2.0f * (d[3 * step] - d[step]);
    t[0] = 4.0f * d[0] - 5.0f * d[2 * step] + d[4 * step];
    t[by] = a + b;
    t[2 * by] = a - b;
    t[3 * by] = c + e;
    t[4 * by] = c - e;
    t[5 * by] = 4.0f * d[step] - 5.0f * d[3 * step] + d[5 * step];
}

/* And six sums, transformed back to four numbers of the output. */
INLINE void gather(const Lanes *m, int64_t step, Lanes *y, int by) {
    Lanes a = m[step] + m[2 * step], b = m[step] - m[2 * step];
    Lanes c = m[3 * step] + m[4 * step], d = m[3 * step] - m[4 * step];
    y[0] = m[0] + a + c;
    y[by] = b + 2.0f * d;
    y[2 * by] = a + 4.0f * c;
    y[3 * by] = b + 8.0f * d + m[5 * step];
}

/* Apply gains and shifts, add what skips the layer, and activate. */
INLINE Lanes finish(Lanes sum, const float *film, int64_t planes, const float *rest, int active) {
    sum = sum * *(const Lanes *)film + *(const Lanes *)(film + planes);
    if (rest) sum += *(const Lanes *)rest;
    return active ? silu(sum) : sum;
}

/* Convolve with 3 x 3 numbers by Winograd's F(4 x 4, 3 x 3). */
INLINE void convolve(
    int64_t count, const Stack *from, const Stack *to, const Stack *rest, int active,
    const float *films, int64_t step, const float *weights, float *work
) {
    int64_t inputs = from->planes, outputs = to->planes, blocks = outputs / LANES;
    int64_t across = (to->width + 3) / 4, tiles = across * ((to->height + 3) / 4);
    float *seen = work;
    Lanes *sums = (Lanes *)(work + 36 * TILES * inputs);
    for (int64_t first = 0; first < count * tiles; first += TILES) {
        for (int64_t t = 0; t < TILES && first + t < count * tiles; t++) {
            int64_t picture = (first + t) / tiles, tile = (first + t) % tiles;
            const float *at = find_pixel(from, picture, tile / across * 4 - 1, tile % across * 4 - 1);
            for (int64_t block = 0; block < inputs; block += LANES) {
                Lanes lines[36], row[6], out[6];
                for (int i = 0; i < 6; i++) {
                    for (int j = 0; j < 6; j++)
                        row[j] = *(const Lanes *)(at + i * from->across + j * inputs + block);
                    transform(row, 1, lines + 6 * i, 1);
                }
                for (int j = 0; j < 6; j++) {
                    transform(lines + j, 6, out, 1);
                    for (int i = 0; i < 6; i++)
                        *(Lanes *)(seen + ((6 * i + j) * TILES + t) * inputs + block) = out[i];
                }
            }
        }
        for (int64_t p = 0; p < 36; p++)
            for (int64_t block = 0; block < blocks; block++)
                multiply(seen + p * TILES * inputs, inputs, inputs,
                         (const Lanes *)weights + p * inputs * blocks + block, blocks, 1,
                         sums + (block * 36 + p) * TILES);
        for (int64_t t = 0; t < TILES && first + t < count * tiles; t++) {
            int64_t picture = (first + t) / tiles, tile = (first + t) % tiles;
            int64_t y = tile / across * 4, x = tile % across * 4;
            for (int64_t block = 0; block < blocks; block++) {
                Lanes lines[24], out[4];
                const float *film = films + picture * step + block * LANES;
                for (int i = 0; i < 6; i++)
                    gather(sums + (block * 36 + 6 * i) * TILES + t, TILES, lines + 4 * i, 1);
                for (int j = 0; j < 4 && x + j < to->width; j++) {
                    gather(lines + j, 4, out, 1);
                    for (int i = 0; i < 4 && y + i < to->height; i++) {
                        float *at = find_pixel(to, picture, y + i, x + j) + block * LANES;
                        const float *other = rest ? rest->at + (at - to->at) : NULL;
                        *(Lanes *)at = finish(out[i], film, outputs, other, active);
                    }
                }
            }
        }
    }
}

/* Convolve with 3 x 3 numbers at every second pixel. */
INLINE void shrink(
    int64_t count, const Stack *from, const Stack *to, const float *films, int64_t step,
    const float *weights
) {
    int64_t inputs = from->planes, outputs = to->planes, blocks = outputs / LANES;
    for (int64_t picture = 0; picture < count; picture++)
        for (int64_t y = 0; y < to->height; y++)
            for (int64_t x = 0; x < to->width; x += TILES)
                for (int64_t block = 0; block < blocks; block++) {
                    Lanes sums[TILES];
                    for (int64_t i = 0; i < 3; i++)
                        multiply(find_pixel(from, picture, 2 * y + i - 1, 2 * x - 1), 2 * inputs,
                                 3 * inputs, (const Lanes *)weights + 3 * i * inputs * blocks + block,
                                 blocks, i == 0, sums);
                    for (int64_t t = 0; t < TILES && x + t < to->width; t++)
                        *(Lanes *)(find_pixel(to, picture, y, x + t) + block * LANES) =
                            finish(sums[t], films + picture * step + block * LANES, outputs, NULL,
                                   1);
                }
}

/* Mix the channels of each pixel, and spread it over 2 x 2. */
INLINE void grow(
    int64_t count, const Stack *from, const Stack *to, const Stack *rest, const float *films,
    int64_t step, const float *weights
) {
    int64_t inputs = from->planes, outputs = to->planes, blocks = outputs / LANES;
    for (int64_t picture = 0; picture < count; picture++)
        for (int64_t y = 0; y < from->height; y++)
            for (int64_t x = 0; x < from->width; x += TILES)
                for (int64_t block = 0; block < blocks; block++) {
                    Lanes sums[TILES];
                    multiply(find_pixel(from, picture, y, x), inputs, inputs,
                             (const Lanes *)weights + block, blocks, 1, sums);
                    for (int64_t t = 0; t < 4 * TILES && x + t / 4 < from->width; t++) {
                        int64_t down = 2 * y + t % 4 / 2, right = 2 * (x + t / 4) + t % 2;
                        float *at = find_pixel(to, picture, down, right) + block * LANES;
                        const float *film = films + picture * step + block * LANES;
                        *(Lanes *)at =
                            finish(sums[t / 4], film, outputs, rest->at + (at - to->at), 1);
                    }
                }
}

/* Draw pictures of `planes` channels in each stack, GROUP at a time. */
static int NAME(paint, LANES)(
    int64_t count, const int64_t *planes, int64_t height, int64_t width, int64_t length,
    const float *features, const float *known, const float *noise, const float *edge,
    const float *weights, float *image
) {
    Stack stacks[STACKS];
    int64_t step = 0, most = 0;
    int full = 0;
    for (int k = 0; k < STACKS; k++) {
        int part = k < SKIP2 || k == OUTLET ? 2 : k < LOW ? 4 : 8;
        stacks[k] = make_stack(height / part, width / part, planes[k]);
        full |= !stacks[k].at;
        if (planes[k] > most) most = planes[k];
    }
    for (int k = 0; k < 16; k++) step += 2 * planes[LAYERS[k][2]];
    float *work = malloc((size_t)(72 * TILES * most) * sizeof(float));
    float *films = malloc((size_t)(GROUP * step) * sizeof(float));
    full |= !work || !films;
    for (int64_t first = 0; first < count && !full; first += GROUP) {
        int64_t n = count - first < GROUP ? count - first : GROUP;
        for (int64_t line = 0; line < n * height; line++) {
            int64_t y = line % height, at = (first * height + line) * width;
            float *pixel = find_pixel(&stacks[INLET], line / height, y / 2, 0) + y % 2 * 2;
            for (int64_t x = 0; x < width; x++) {
                pixel[x / 2 * CHANNELS + x % 2] = noise[at + x];
                pixel[x / 2 * CHANNELS + x % 2 + 4] = edge[at + x];
            }
        }
        for (int64_t k = 0; k < step; k += LANES)
            for (int64_t picture = 0; picture < n; picture++) {
                Lanes sum = *(const Lanes *)(known + length * step + k);
                for (int64_t j = 0; j < length; j++)
                    sum += features[(first + picture) * length + j]
                           * *(const Lanes *)(known + j * step + k);
                *(Lanes *)(films + picture * step + k) = sum;
            }
        const float *film = films, *kernel = weights;
        for (int k = 0; k < 16; k++) {
            const int *layer = LAYERS[k];
            const Stack *from = &stacks[layer[1]], *to = &stacks[layer[2]];
            const Stack *rest = layer[3] < 0 ? NULL : &stacks[layer[3]];
            if (layer[0] == 36) convolve(n, from, to, rest, layer[4], film, step, kernel, work);
            if (layer[0] == 9) shrink(n, from, to, film, step, kernel);
            if (layer[0] == 1) grow(n, from, to, rest, film, step, kernel);
            film += 2 * to->planes;
            kernel += layer[0] * from->planes * to->planes;
        }
        for (int64_t line = 0; line < n * height; line++) {
            int64_t y = line % height, at = (first * height + line) * width;
            const float *pixel = find_pixel(&stacks[OUTLET], line / height, y / 2, 0) + y % 2 * 2;
            for (int64_t x = 0; x < width; x++) image[at + x] = pixel[x / 2 * CHANNELS + x % 2];
        }
    }
    for (int k = 0; k < STACKS; k++) free(stacks[k].at);
    free(work);
    free(films);
    return full ? NO_MEMORY : 0;
}

#undef LANES
