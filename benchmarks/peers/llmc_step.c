// One training step of llm.c's CPU trainer whenever a line comes in: llmc_step CHECKPOINT B T. Answers "done".
#include "train_gpt2.c" // with -DTESTING it brings everything but its main

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    GPT2 model;
    gpt2_build_from_checkpoint(&model, argv[1]);
    int B = atoi(argv[2]), T = atoi(argv[3]);
    int *tokens = malloc((B * T + 1) * sizeof(int));
    for (int i = 0; i <= B * T; i++) tokens[i] = (int)((i * 2654435761u) % model.config.vocab_size);
    char line[16];
    for (int step = 1; fgets(line, sizeof line, stdin); step++) {
        gpt2_forward(&model, tokens, tokens + 1, B, T);
        gpt2_zero_grad(&model);
        gpt2_backward(&model);
        gpt2_update(&model, 1e-4f, 0.9f, 0.999f, 1e-8f, 0.01f, step);
        puts("done");
        fflush(stdout);
    }
    return 0;
}
