/* A module by RediSearch's name that has two indexes: what `check` asks of it, where the real one is not to be had.
 * The module API is taken as modules take it (the context's first word is GetApi), without its header. */

typedef struct Ctx Ctx;

static int (*create_command)(Ctx *, const char *, int (*)(Ctx *, void **, int), const char *, int, int, int);
static int (*reply_with_array)(Ctx *, long);
static int (*reply_with_string)(Ctx *, const char *);
static void (*set_attributes)(Ctx *, const char *, int, int);

static int list(Ctx *ctx, void **argv, int argc) {
    (void)argv;
    (void)argc;
    reply_with_array(ctx, 2);
    reply_with_string(ctx, "idx:a");
    return reply_with_string(ctx, "idx:b");
}

int RedisModule_OnLoad(Ctx *ctx, void **argv, int argc) {
    (void)argv;
    (void)argc;
    int (*get)(const char *, void *) = (int (*)(const char *, void *))((void **)ctx)[0];
    get("RedisModule_CreateCommand", &create_command);
    get("RedisModule_ReplyWithArray", &reply_with_array);
    get("RedisModule_ReplyWithSimpleString", &reply_with_string);
    get("RedisModule_SetModuleAttribs", &set_attributes);
    set_attributes(ctx, "search", 1, 1);
    return create_command(ctx, "FT._LIST", list, "readonly", 0, 0, 0);
}
