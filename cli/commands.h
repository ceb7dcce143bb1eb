/* The subcommands. To add one: write its file, declare it here, give it a line in main.c. */
#ifndef CLI_COMMANDS_H
#define CLI_COMMANDS_H

/* argv[0] is the last word of the command's name; the exit code comes back. */
int cli_run(int argc, char **argv);
int cli_info(int argc, char **argv);
int cli_eval(int argc, char **argv);
int cli_eval_model(int argc, char **argv);
int cli_eval_tasks(int argc, char **argv);
int cli_eval_trace(int argc, char **argv);
int cli_plan(int argc, char **argv);
int cli_recipe(int argc, char **argv);
int cli_session(int argc, char **argv);
int cli_trace(int argc, char **argv);
int cli_bench(int argc, char **argv);

#endif
