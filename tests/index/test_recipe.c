/* Recipe texts: names, parameters, and messages that say what was wrong. */
#include "index_test.h"

static void expect_error(const char *text, hr_status_t status, const char *words)
{
    struct hri_recipe recipe = {0};
    assert_int_equal(hri_recipe_parse(text, &recipe), status);
    assert_null(recipe.selector);
    if (!strstr(hr_last_error(), words))
        fail_msg("'%s' gave '%s', which does not say '%s'", text, hr_last_error(), words);
}

static void test_names(void **state)
{
    static const char *const names[] = {"full",  "window",     "exact-topk",
                                        "quest", "retroinfer", "headrace"};
    (void)state;
    for (size_t i = 0; i < 6; i++) {
        struct hri_recipe recipe;
        assert_int_equal(hri_recipe_parse(names[i], &recipe), HR_OK);
        assert_string_equal(recipe.selector->name, names[i]);
        assert_true(hri_recipe_value(&recipe, "sink") == 4);
        assert_true(hri_recipe_value(&recipe, "window") == 64);
        assert_true(hri_recipe_value(&recipe, "segment") == 8192);
        assert_true(hri_recipe_value(&recipe, "decode_segment") == 512);
    }
    size_t n = 0;
    while (hri_selector_at(n)) {
        for (size_t i = 0; i < n; i++)
            assert_string_not_equal(hri_selector_at(n)->name, hri_selector_at(i)->name);
        n++;
    }
    assert_true(n >= 6);
    assert_null(hri_selector_at(n));
    assert_null(hri_selector_at((size_t)-1));
}

/* Every selector describes itself, its defaults are allowed values, and it has room for its
 * parameters. */
static void test_descriptors(void **state)
{
    const struct hri_selector *s;
    (void)state;
    for (size_t i = 0; (s = hri_selector_at(i)); i++) {
        assert_non_null(s->summary);
        assert_non_null(s->source);
        assert_non_null(s->ops->select);
        int n = 0;
        for (const struct hri_param *p = s->params; p->name; p++, n++) {
            assert_true(p->value_default == 0 ||
                        (p->min <= p->value_default && p->value_default <= p->max));
            assert_true(strlen(p->meaning) > 0);
            for (const struct hri_param *other = s->params; other < p; other++)
                assert_string_not_equal(other->name, p->name);
        }
        assert_in_range(n, 1, HRI_SELECTOR_PARAMS_MAX);
    }
}

static void test_parameters(void **state)
{
    struct hri_recipe recipe;
    (void)state;
    assert_int_equal(hri_recipe_parse("quest:page=32", &recipe), HR_OK);
    assert_true(hri_recipe_value(&recipe, "page") == 32);
    assert_true(hri_recipe_value(&recipe, "block") == 32);
    assert_int_equal(hri_recipe_parse("headrace: block=32, sink=8 ,window=128", &recipe), HR_OK);
    assert_true(hri_recipe_value(&recipe, "block") == 32);
    assert_true(hri_recipe_value(&recipe, "sink") == 8);
    assert_true(hri_recipe_value(&recipe, "window") == 128);
    assert_int_equal(hri_recipe_parse("retroinfer:estimate=50%", &recipe), HR_OK);
    assert_true(hri_recipe_value(&recipe, "estimate") == 0.5);
    assert_true(hri_recipe_value(&recipe, "nothing") == 0);
    assert_int_equal(hri_recipe_parse("tokenselect:reuse_cosine=-1", &recipe), HR_OK);
    assert_true(hri_recipe_value(&recipe, "reuse_cosine") == -1);
    assert_int_equal(hri_recipe_parse("quest:page=1.6e1", &recipe), HR_OK);
    assert_true(hri_recipe_value(&recipe, "page") == 16);
}

static void test_errors(void **state)
{
    (void)state;
    expect_error("", HR_ERR_INVALID, "empty");
    expect_error(NULL, HR_ERR_INVALID, "empty");
    expect_error("headrase", HR_ERR_NOTFOUND, "'headrase' is not known; the nearest is 'headrace'");
    expect_error("qest", HR_ERR_NOTFOUND, "nearest is 'quest'");
    expect_error("topk", HR_ERR_NOTFOUND, "'topk'");
    expect_error(":sink=3", HR_ERR_NOTFOUND, "''");
    expect_error("headrace:blok=3", HR_ERR_NOTFOUND,
                 "recipe headrace has no parameter 'blok'; the nearest is 'block'");
    expect_error("window:block=3", HR_ERR_NOTFOUND, "recipe window has no parameter 'block'");
    expect_error("headrace:block", HR_ERR_INVALID, "'block' is not key=value");
    expect_error("headrace:block=", HR_ERR_INVALID, "not a number");
    expect_error("headrace:block=ten", HR_ERR_INVALID, "block is 'ten', which is not a number");
    expect_error("headrace:block=16x", HR_ERR_INVALID, "not a number");
    expect_error("headrace:block=nan", HR_ERR_INVALID, "not a number");
    expect_error("headrace:block=1000", HR_ERR_INVALID, "block is 1000, allowed is 4 to 64");
    expect_error("headrace:block=-1", HR_ERR_INVALID, "allowed is 4 to 64");
    expect_error("headrace:block=16.5", HR_ERR_INVALID, "whole number");
    expect_error("headrace:sketch=1.5", HR_ERR_INVALID, "sketch is 1.5, it must be a whole number");
    expect_error("squeezed:levels=1.5", HR_ERR_INVALID, "whole number");
    expect_error("magicpig:collisions=2.5", HR_ERR_INVALID, "whole number");
    struct hri_recipe fractions;
    assert_int_equal(hri_recipe_parse("headrace:reuse=0.5", &fractions), HR_OK);
    assert_int_equal(hri_recipe_parse("infinigen:alpha=3.5", &fractions), HR_OK);
    expect_error("headrace:sink=1,,window=2", HR_ERR_INVALID,
                 "recipe headrace: a list has an empty item");
    expect_error("headrace:", HR_ERR_INVALID, "recipe headrace: a list has an empty item");
    /* Two values for one parameter, under one name or under both of it. */
    expect_error("quest:page=32,page=32", HR_ERR_INVALID, "recipe quest: page is there twice");
    expect_error("quest:block=8,sink=4,page=8", HR_ERR_INVALID, "page is there twice");
    expect_error("faiss:Flat;nprobe=4,nprobe=8", HR_ERR_INVALID, "nprobe is there twice");
    /* Nearest in spite of letters' case, or as the beginning of a name. */
    expect_error("QUEST", HR_ERR_NOTFOUND, "nearest is 'quest'");
    expect_error("razor", HR_ERR_NOTFOUND, "nearest is 'razorattention'");
    expect_error("duo", HR_ERR_NOTFOUND, "nearest is 'duoattention'");
    expect_error("task_kv", HR_ERR_NOTFOUND, "nearest is 'task-kv'");
    expect_error("quest:Page=8", HR_ERR_NOTFOUND, "nearest is 'page'");
    /* Numbers as people write them, not as C does; ranges in full. */
    expect_error("quest:page=0x10", HR_ERR_INVALID, "page is '0x10', which is not a number");
    expect_error("quest:page=inf", HR_ERR_INVALID, "not a number");
    expect_error("quest:page=%", HR_ERR_INVALID, "page is '%', which is not a number");
    expect_error("quest:page=1e400", HR_ERR_INVALID, "not a number");
    expect_error("faiss:Flat;nprobe=1e12", HR_ERR_INVALID,
                 "nprobe is 1000000000000, allowed is 0 to 1048576");
    char longest[400];
    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    expect_error(longest, HR_ERR_NOTFOUND, "399 characters");
    memcpy(longest, "headrace:", 9);
    expect_error(longest, HR_ERR_INVALID, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_descriptors),
        cmocka_unit_test(test_parameters),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
