/* The host's side of the mailbox (kernels/cuda/launch.h): while a step is under way on the device, the thread that waits for it
 * brings what the device asks for, from host memory or the file, and answers block by block. */
#include "runtime/device_part.h"

#include "base/error.h"
#include <sched.h>
#include <string.h>

static void answer(struct hri_device_part *p, uint32_t j, bool landed)
{
    __atomic_store_n(&p->box.answers[j], 2 * p->served + landed, __ATOMIC_RELEASE);
    p->answered[j] = 1;
}

/* What has arrived since. */
static void answers_give(struct hri_device_part *p, struct hri_device_mail *mail)
{
    for (uint32_t j = 0; j < p->batch.n_reads; j++) {
        const struct hri_read *read = &p->reads[j];
        if (p->answered[j] || !read->done) {
            continue;
        }
        mail->n_lost += read->status != HR_OK;
        mail->why = read->status != HR_OK ? read->status : mail->why;
        answer(p, j, read->status == HR_OK);
    }
}

/* The turn is over: what is still on its way is given up, and goes to the host tier when it comes. */
static void turn_end(hr_sequence_t *s, struct hri_device_mail *mail)
{
    struct hri_device_part *p = s->part;
    if (p->batch.n_reads == 0) {
        return;
    }
    for (uint32_t j = 0; j < p->batch.n_reads; j++) {
        mail->n_late += !p->answered[j];
    }
    if (p->batch.n_pending > 0) {
        hri_store_read_cancel(s->runtime->store, &p->batch);
    }
    mail->report->bytes_from_host += p->batch.bytes_from_host;
    mail->report->bytes_from_file += p->batch.bytes_from_file;
    mail->report->ios += p->batch.ios;
    p->batch.n_reads = 0;
}

static void turn_begin(hr_sequence_t *s, struct hri_device_mail *mail, uint32_t ticket)
{
    struct hri_device_part *p = s->part;
    const uint32_t layer = mail->first_layer + (ticket - mail->first_ticket), n = *p->box.n;
    p->served = ticket;
    for (uint32_t j = 0; j < n; j++) {
        hri_device_read_fill(s, layer, &p->box.requests[j],
                             p->box.landing + (size_t)j * p->frame_bytes, &p->reads[j]);
    }
    memset(p->answered, 0, n);
    p->batch = (struct hri_read_batch){.reads = p->reads, .n_reads = n, .indirect = true};
    hr_status_t status = n > 0 ? hri_store_read_begin(s->runtime->store, &p->batch) : HR_OK;
    for (uint32_t j = 0; status != HR_OK && j < n; j++) { /* nothing was begun */
        answer(p, j, false);
        mail->why = status;
        p->batch.n_reads = 0;
    }
}

/* Returns whether there was something to do. */
static bool poll_once(hr_sequence_t *s, struct hri_device_mail *mail)
{
    struct hri_device_part *p = s->part;
    const uint32_t posted = __atomic_load_n(p->box.posted, __ATOMIC_ACQUIRE);
    const bool fresh =
        posted != p->served && posted - mail->first_ticket < mail->n_layers; /* unsigned */
    if (fresh) {
        turn_end(s, mail);
        turn_begin(s, mail, posted);
    }
    if (p->batch.n_reads > 0 && p->batch.n_pending > 0) {
        hri_store_read_poll(s->runtime->store, &p->batch);
    }
    if (p->batch.n_reads > 0) {
        answers_give(p, mail);
    }
    return fresh;
}

hr_status_t hri_device_mail_serve(hr_sequence_t *s, struct hri_device_mail *mail)
{
    struct hri_device_part *p = s->part;
    const struct hri_device_ops *ops = hri_device_ops(p->device);
    hr_status_t status = hri_device_check(
        p->device, ops->event_record(p->event, hri_device_stream(p->device)), "an event");
    while (status == HR_OK) {
        int error = ops->event_query(p->event);
        if (error == 0) {
            break;
        }
        if (ops->fault(error) != HRI_DEVICE_NOT_READY) {
            status = hri_device_check(p->device, error, "a step");
        } else if (!poll_once(s, mail)) {
            sched_yield();
        }
    }
    turn_end(s, mail);
    return status;
}
