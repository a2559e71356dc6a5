/* The loops over pixels that a video takes most time in; bvdm_data/pixels.py calls them.

Each has a twin in torch, which machines without a compiler use. All arrays are contiguous. A nucleus
is a row of a table of N nuclei in F frames: its centre (y, x) in pixels, the cosine and sine of the
angle of its axis, and the number of its outline, K radii in equally spaced directions from the axis
on. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT
#endif

/* What a loop returns where memory runs out; else 0. */
enum { NO_MEMORY = 1 };

/* The best vector instructions of the machine are chosen when a loop runs. ("arch=haswell" would be
   that processor of Intel's alone; "avx2" is every one that has it.) */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define CLONES
#endif

static const double PI = 3.14159265358979323846;

/* Nearer to an outline than this, px, rounding may decide whether a pixel is inside. */
static const float CLOSE = 2e-3f;

static float clip(float value, float least, float most) {
    return value < least ? least : value > most ? most : value;
}

/* Return the direction of a point, from 0 along +y over a quarter of `corners` along +x to half of
   them; negative along -x. It is off by less than 1e-6 of a turn. */
static float find_position(float y, float x, float corners) {
    float tall = fabsf(y), wide = fabsf(x), longer = tall > wide ? tall : wide;
    float ratio = longer > 0 ? (tall < wide ? tall : wide) / longer : 0, square = ratio * ratio;
    float angle = 0.00681178924f;
    angle = angle * square - 0.0336042121f;
    angle = angle * square + 0.0796236694f;
    angle = angle * square - 0.132333428f;
    angle = angle * square + 0.198078156f;
    angle = angle * square - 0.333173692f;
    angle = angle * square + 0.999996126f;
    angle *= ratio;
    if (wide > tall) angle = (float)(PI / 2) - angle;
    if (y < 0) angle = (float)PI - angle;
    if (x < 0) angle = -angle;
    return angle * (float)(0.5 / PI) * corners;
}

/* The vertex before a direction, the next one, and the share of the way to it. */
typedef struct {
    int before, after;
    float share;
} Vertex;

static Vertex find_vertex(float position, int corners) {
    Vertex found;
    int low = (int)position;
    low -= (float)low > position;
    found.share = position - (float)low;
    found.before = low < 0 ? low + corners : low >= corners ? low - corners : low;
    found.after = found.before + 1 == corners ? 0 : found.before + 1;
    return found;
}

static float interpolate(const float *radii, Vertex at) {
    float here = radii[at.before], there = radii[at.after];
    return here + at.share * (there - here);
}

/* Return whether a point is inside, rounded as torch does. */
static int is_inside_exactly(float y, float x, const float *radii, int corners) {
    float angle = (float)atan2((double)x, (double)y);
    Vertex at = find_vertex(angle * (float)(corners / (2 * PI)), corners);
    return (float)sqrt((double)x * x + (double)y * y) <= interpolate(radii, at);
}

/* Draw the nuclei that are there, each over those of a lower rank in its frame. `seen` gets the row,
   from 1, that is seen at each pixel, `outlined` how many pixels each nucleus covers, and `area` at
   how many it is seen; all three are zero before. */
EXPORT int draw_outlines(
    int64_t height, int64_t width, int64_t count, int64_t frames, int64_t corners,
    const float *centres, const float *axes, const float *outlines, const int64_t *entry,
    const uint8_t *there, const int64_t *rank, int32_t *seen, int64_t *outlined, int64_t *area
) {
    int64_t *order = malloc((size_t)(count + 1) * sizeof(int64_t));
    if (!order) return NO_MEMORY;
    for (int64_t frame = 0; frame < frames; frame++) {
        for (int64_t row = 0; row < count; row++) order[rank[row * frames + frame]] = row;
        for (int64_t number = 0; number < count; number++) {
            int64_t at = order[number] * frames + frame;
            if (!there[at]) continue;
            const float *outline = outlines + entry[at] * corners;
            float low = outline[0], high = outline[0];
            for (int64_t k = 1; k < corners; k++) {
                if (outline[k] < low) low = outline[k];
                if (outline[k] > high) high = outline[k];
            }
            /* The chords of an outline never come nearer than its least radius. */
            float sure = low > CLOSE ? (low - CLOSE) * (low - CLOSE) : 0;
            float most = (high + CLOSE) * (high + CLOSE);
            float down = centres[2 * at], right = centres[2 * at + 1];
            float cosine = axes[2 * at], sine = axes[2 * at + 1];
            int64_t top = (int64_t)clip(down - high - 1, 0, (float)height);
            int64_t bottom = (int64_t)clip(down + high + 2, 0, (float)height);
            int64_t left = (int64_t)clip(right - high - 1, 0, (float)width);
            int64_t end = (int64_t)clip(right + high + 2, 0, (float)width);
            for (int64_t i = top; i < bottom; i++) {
                int32_t *line = seen + (frame * height + i) * width;
                float dy = (float)i - down;
                for (int64_t j = left; j < end; j++) {
                    float dx = (float)j - right;
                    float y = cosine * dy + sine * dx, x = cosine * dx - sine * dy;
                    float square = y * y + x * x;
                    if (square > most) continue;
                    if (square >= sure) {
                        Vertex vertex = find_vertex(find_position(y, x, (float)corners), (int)corners);
                        float outside = sqrtf(square) - interpolate(outline, vertex);
                        if (outside > CLOSE) continue;
                        if (outside > -CLOSE && !is_inside_exactly(y, x, outline, (int)corners))
                            continue;
                    }
                    if (line[j]) area[(line[j] - 1) * frames + frame]--;
                    line[j] = (int32_t)(order[number] + 1);
                    outlined[at]++;
                    area[at]++;
                }
            }
        }
    }
    free(order);
    return 0;
}

/* Write the displacement (dy, dx) of each pixel of a nucleus that is seen in the next frame, too,
   where a point keeps its share of the way from the centre to the outline. `flow` is zero before,
   as is `shown`, [F, N + 1], which gets where each row of `seen` is. */
EXPORT int write_flow(
    int64_t height, int64_t width, int64_t count, int64_t frames, int64_t corners,
    const float *centres, const float *axes, const float *outlines, const int64_t *entry,
    const int32_t *seen, uint8_t *shown, float *flow
) {
    int64_t pixels = height * width;
    for (int64_t frame = 0; frame < frames; frame++)
        for (int64_t i = 0; i < pixels; i++) shown[frame * (count + 1) + seen[frame * pixels + i]] = 1;
    for (int64_t frame = 0; frame + 1 < frames; frame++) {
        const uint8_t *again = shown + (frame + 1) * (count + 1);
        for (int64_t i = 0; i < pixels; i++) {
            int32_t row = seen[frame * pixels + i];
            if (!row || !again[row]) continue;
            int64_t now = (row - 1) * frames + frame, next = now + 1;
            float line = (float)(i / width), column = (float)(i % width);
            float dy = line - centres[2 * now], dx = column - centres[2 * now + 1];
            float y = axes[2 * now] * dy + axes[2 * now + 1] * dx;
            float x = axes[2 * now] * dx - axes[2 * now + 1] * dy;
            Vertex at = find_vertex(find_position(y, x, (float)corners), (int)corners);
            float stretch = interpolate(outlines + entry[next] * corners, at);
            stretch /= interpolate(outlines + entry[now] * corners, at);
            y *= stretch;
            x *= stretch;
            float *moved = flow + 2 * frame * pixels + i;
            moved[0] = axes[2 * next] * y - axes[2 * next + 1] * x + (centres[2 * next] - line);
            moved[pixels] = axes[2 * next + 1] * y + axes[2 * next] * x + (centres[2 * next + 1] - column);
        }
    }
    return 0;
}

/* Measure each nucleus in each frame of ids from 1 to `count`: its area, the sums of its rows and
   columns, and its first and last row and column, [count, F, 7]. The first three are zero before,
   the others the largest and -1 in turn. */
EXPORT int measure_extents(
    int64_t count, int64_t frames, int64_t height, int64_t width, const int32_t *masks,
    int64_t *extents
) {
    for (int64_t frame = 0; frame < frames; frame++)
        for (int64_t y = 0; y < height; y++)
            for (int64_t x = 0; x < width; x++) {
                int32_t id = *masks++;
                if (id < 1 || id > count) continue;
                int64_t *found = extents + 7 * ((id - 1) * frames + frame);
                found[0]++;
                found[1] += y;
                found[2] += x;
                if (y < found[3]) found[3] = y;
                if (y > found[4]) found[4] = y;
                if (x < found[5]) found[5] = x;
                if (x > found[6]) found[6] = x;
            }
    return 0;
}

/* Cubic convolution (a = -0.75, as in torch) of four neighbours, at a share of the way from the
   second to the third. */
static void weigh_neighbours(float share, float *weights) {
    const float a = -0.75f;
    float rest = 1 - share;
    weights[0] = a * share * rest * rest;
    weights[1] = ((a + 2) * share - (a + 3)) * share * share + 1;
    weights[3] = a * share * share * rest;
    weights[2] = 1 - weights[0] - weights[1] - weights[3];
}

/* Add turned and scaled patches, `tall` by `wide` pixels, to frames. `poses` holds centre (y, x),
   cosine, sine, and pixels of the patch to a pixel of the frame. Beyond its border a patch is dark,
   and so is what lies more than `half` pixels up, down, left or right of the centre. */
CLONES
EXPORT int add_patches(
    int64_t height, int64_t width, int64_t count, int64_t tall, int64_t wide, int64_t half,
    const int64_t *order, const int64_t *frames, const float *poses, const float *light,
    float *total
) {
    /* A rim of four dark pixels spares the question where a patch ends. */
    int64_t step = wide + 8;
    float middle_y = (float)(tall - 1) / 2 + 4, end_y = (float)tall + 5;
    float middle_x = (float)(wide - 1) / 2 + 4, end_x = (float)wide + 5;
    float *patch = calloc((size_t)((tall + 8) * step), sizeof(float));
    if (!patch) return NO_MEMORY;
    for (int64_t number = 0; number < count; number++) {
        /* A spline reaches two pixels farther than the light, and so across a corner three. */
        float lit = 0;
        for (int64_t i = 4; i < tall + 4; i++)
            for (int64_t j = 4; j < wide + 4; j++) {
                float value = light[(order[number] * tall + i - 4) * wide + j - 4];
                float y = (float)i - middle_y, x = (float)j - middle_x, square = y * y + x * x;
                patch[i * step + j] = value;
                if (value != 0 && square > lit) lit = square;
            }
        lit = (sqrtf(lit) + 3) * (sqrtf(lit) + 3);
        const float *pose = poses + 5 * number;
        float down = pose[0], right = pose[1], cosine = pose[2] * pose[4], sine = pose[3] * pose[4];
        int64_t row = (int64_t)floorf(down), column = (int64_t)floorf(right);
        int64_t top = row > half ? row - half : 0, left = column > half ? column - half : 0;
        int64_t bottom = row + half + 2 < height ? row + half + 2 : height;
        int64_t stop = column + half + 2 < width ? column + half + 2 : width;
        for (int64_t i = top; i < bottom; i++) {
            float *line = total + (frames[number] * height + i) * width;
            float dy = (float)i - down;
            for (int64_t j = left; j < stop; j++) {
                float dx = (float)j - right;
                float y = cosine * dy + sine * dx, x = cosine * dx - sine * dy;
                if (y * y + x * x > lit) continue;
                y += middle_y;
                x += middle_x;
                if (!(y >= 2 && y < end_y && x >= 2 && x < end_x)) continue;
                float across[4], along[4], sum = 0;
                weigh_neighbours(y - (float)(int)y, along);
                weigh_neighbours(x - (float)(int)x, across);
                const float *at = patch + ((int)y - 1) * step + (int)x - 1;
                for (int k = 0; k < 4; k++, at += step)
                    sum += along[k] * (across[0] * at[0] + across[1] * at[1] + across[2] * at[2]
                                       + across[3] * at[3]);
                line[j] += sum;
            }
        }
    }
    free(patch);
    return 0;
}

/* Draw `count` numbers of each of some streams, four to a block, from the block `first` on; each is
   one of the 2^16 of a table. Blocks are those of SplitMix64 (Steele, Lea & Flood 2014). */
EXPORT int draw_numbers(
    int64_t streams, int64_t count, const int64_t *seeds, const int64_t *first, const float *table,
    float *found
) {
    for (int64_t stream = 0; stream < streams; stream++) {
        uint64_t state = (uint64_t)seeds[stream] + (uint64_t)first[stream] * 0x9E3779B97F4A7C15u;
        for (int64_t i = 0; i < count; i += 4) {
            uint64_t bits = state += 0x9E3779B97F4A7C15u;
            bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9u;
            bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBu;
            bits ^= bits >> 31;
            for (int64_t k = 0; k < 4 && i + k < count; k++, bits >>= 16)
                *found++ = table[bits & 0xFFFF];
        }
    }
    return 0;
}

/* Write a frame of light as a camera sees it: white noise is convolved along its rows with a kernel
   of 2 * `reach` + 1 numbers, as in a mirror beyond its borders, and added to light, level and
   background; the sum is rounded to one of `settings[2]` steps. */
CLONES
EXPORT int develop(
    int64_t height, int64_t width, int64_t reach, const float *kernel, const float *settings,
    const float *white, const float *light, const float *background, float *seen
) {
    float noise = settings[0], level = settings[1], steps = settings[2];
    float *row = malloc((size_t)(2 * width + 2 * reach) * sizeof(float));
    if (!row) return NO_MEMORY;
    float *blurred = row + width + 2 * reach;
    /* Added to a number and taken away again, it leaves a whole one. */
    const float whole = 12582912.0f;
    for (int64_t i = 0; i < height * width; i += width) {
        memcpy(row + reach, white + i, (size_t)width * sizeof(float));
        for (int64_t j = 0; j < reach; j++) {
            int64_t at = j % (2 * width), far = at < width ? at : 2 * width - 1 - at;
            row[reach - 1 - j] = white[i + far];
            row[reach + width + j] = white[i + width - 1 - far];
        }
        memset(blurred, 0, (size_t)width * sizeof(float));
        for (int64_t k = 0; k <= 2 * reach; k++)
            for (int64_t j = 0; j < width; j++)
                blurred[j] += kernel[k] * row[2 * reach - k + j];
        for (int64_t j = i; j < i + width; j++) {
            float sum = blurred[j - i] * noise + (light[j] + level) + background[j];
            seen[j] = ((clip(sum * steps, 0, steps) + whole) - whole) / steps;
        }
    }
    free(row);
    return 0;
}

/* The student's network, in the vectors that compilers of the GNU kind know. */
#ifdef __GNUC__

/* Channels are filled up to a multiple of CHANNELS, and GROUP pictures are drawn at once. */
enum { CHANNELS = 16, GROUP = 2 };

/* Pictures of one size, a rim of zeros around each, the channels of a pixel together. Room is for
   whole tiles of 4 x 4 pixels. */
typedef struct {
    int64_t height, width, planes, across, size;
    float *at;
} Stack;

static Stack make_stack(int64_t height, int64_t width, int64_t planes) {
    Stack made = {height, width, planes, 0, 0, NULL};
    made.across = (4 * ((width + 3) / 4) + 2) * planes;
    made.size = (4 * ((height + 3) / 4) + 2) * made.across;
    made.at = calloc((size_t)(GROUP * made.size + 64 * planes), sizeof(float));
    return made;
}

static inline float *find_pixel(const Stack *stack, int64_t picture, int64_t y, int64_t x) {
    return stack->at + picture * stack->size + (y + 1) * stack->across + (x + 1) * stack->planes;
}

/* Kernel of Winograd's, one of 3 x 3 at half the resolution, or one of a pixel at twice; where it
   reads and writes, what it adds, and whether an activation follows. */
enum { INLET, SKIP1, WIDE, WIDER, SKIP2, MIDDLE, MIDDLER, LOW, LOWER, OUTLET, STACKS };
static const int LAYERS[16][5] = {
    {36, INLET, WIDE, -1, 1}, {36, WIDE, WIDER, -1, 1}, {36, WIDER, SKIP1, WIDE, 0},
    {9, SKIP1, MIDDLE, -1, 1}, {36, MIDDLE, MIDDLER, -1, 1}, {36, MIDDLER, SKIP2, MIDDLE, 0},
    {9, SKIP2, LOW, -1, 1}, {36, LOW, LOWER, -1, 1}, {36, LOWER, LOW, LOW, 0},
    {1, LOW, MIDDLE, SKIP2, 1}, {36, MIDDLE, MIDDLER, -1, 1}, {36, MIDDLER, MIDDLE, MIDDLE, 0},
    {1, MIDDLE, WIDE, SKIP1, 1}, {36, WIDE, WIDER, -1, 1}, {36, WIDER, WIDE, WIDE, 1},
    {36, WIDE, OUTLET, -1, 0},
};

typedef int Painter(
    int64_t, const int64_t *, int64_t, int64_t, int64_t, const float *, const float *,
    const float *, const float *, const float *, float *
);

#if defined(__x86_64__) && !defined(__clang__)
#define HAS_KINDS
#endif
#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")
#define LANES 4
#include "student.c"
#ifdef HAS_KINDS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define LANES 8
#include "student.c"
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define LANES 16
#include "student.c"
#pragma GCC pop_options
#endif
#pragma GCC pop_options

/* Tell how many numbers the best vectors of the machine hold. */
EXPORT int count_lanes(int64_t *lanes) {
    *lanes = 4;
#ifdef HAS_KINDS
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) *lanes = 8;
    if (__builtin_cpu_supports("x86-64-v4")) *lanes = 16;
#endif
    return 0;
}

/* Draw pictures as the student does, each given `length` features. `known` holds what makes them
   gains and shifts of all layers, and last a constant; `weights` the kernels of the layers, as
   Student.pack orders them; a, b and c are numbers of channels, whole times CHANNELS. */
EXPORT int paint(
    int64_t count, int64_t height, int64_t width, int64_t a, int64_t b, int64_t c, int64_t length,
    const float *features, const float *known, const float *noise, const float *edge,
    const float *weights, float *image
) {
    const int64_t planes[STACKS] = {CHANNELS, a, a, a, b, b, b, c, c, CHANNELS};
    Painter *draw = paint_4;
    int64_t lanes;
    count_lanes(&lanes);
#ifdef HAS_KINDS
    if (lanes == 8) draw = paint_8;
    if (lanes == 16) draw = paint_16;
#endif
    return draw(count, planes, height, width, length, features, known, noise, edge, weights, image);
}

#endif
