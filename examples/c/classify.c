/* Which class is an image of? classify NET.fggp IMAGE.ppm prints the class's number and score. */
#include <fggp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Number n of a list in the metadata, where `fggp export` puts how images are prepared, as JSON in JSON. */
static float number(const char *about, const char *list, int n, float otherwise) {
    const char *at = strstr(about, list);
    for (at = at ? strchr(at, '[') : NULL; at && n > 0; n--) at = strchr(at + 1, ',');
    return at ? strtof(at + 1, NULL) : otherwise;
}

int main(int argc, char **argv) {
    static unsigned char bytes[1 << 20][3]; /* red, green and blue of each pixel */
    static float image[3 << 20];            /* [3, height, width] */
    int width = 0, height = 0, pixels = 0, best = 0;
    FILE *file = argc == 3 ? fopen(argv[2], "rb") : NULL;
    if (file && fscanf(file, "P6 %4d %4d 255%*1c", &width, &height) == 2) pixels = (int)fread(bytes, 3, 1 << 20, file);
    if (file) fclose(file);
    if (!pixels || pixels != width * height) return fputs("usage: classify NET.fggp IMAGE.ppm\n", stderr), 2;

    fggp_network *net = NULL;
    fggp_array input = {"x", FGGP_F32, 4, (int64_t[]){1, 3, height, width}, image};
    const fggp_array *scores = NULL;
    int32_t status = fggp_load(argv[1], &net), outputs = 0;
    for (int channel = 0; channel < 3 && status == FGGP_OK; channel++) {
        float mean = number(fggp_describe(net), "\\\"mean\\\"", channel, 0);
        float std = number(fggp_describe(net), "\\\"std\\\"", channel, 1);
        for (int i = 0; i < pixels; i++) image[channel * pixels + i] = (bytes[i][channel] - mean) / std;
    }
    if (status == FGGP_OK) status = fggp_run(net, &input, 1, 2, &scores, &outputs);
    if (status != FGGP_OK) fprintf(stderr, "classify: %s\n", fggp_error(net));
    else if (outputs != 1 || scores->type != FGGP_F32 || scores->rank != 2) status = fputs("no scores\n", stderr) + 1;
    const float *score = status == FGGP_OK ? scores->data : NULL;
    for (int i = 1; score && i < scores->shape[1]; i++) best = score[i] > score[best] ? i : best;
    if (score) printf("class %d, score %g\n", best, score[best]);
    fggp_free(net);
    return status;
}
