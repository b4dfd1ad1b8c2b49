/* A V4L2 camera where there is none, for the code of OpenCV that reads one; loaded before the C library (LD_PRELOAD).
 *
 * A file of a certain size is the device, its content the four buffers, mapped as those of a driver would be. The
 * file is deleted: the device is unplugged. It was changed in 1970: the device stands still. What is answered then
 * is what Linux answers (v4l2-dev.c: ENODEV, and POLLERR | POLLHUP).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/videodev2.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WIDTH = 64, HEIGHT = 48, PICTURE_BYTES = WIDTH * HEIGHT * 2, BUFFERS = 4, BUFFER_BYTES = 8192 };
enum { FILE_BYTES = BUFFERS * BUFFER_BYTES + 1, PERIOD_MICROSECONDS = 40000 };

enum state { NO_DEVICE, UNPLUGGED, SILENT, PLUGGED };

static unsigned taken;

static enum state state_of(int fd)
{
    struct stat found;
    if (fstat(fd, &found) || !S_ISREG(found.st_mode) || found.st_size != FILE_BYTES)
        return NO_DEVICE;
    if (found.st_nlink == 0)
        return UNPLUGGED;
    return found.st_mtime == 0 ? SILENT : PLUGGED;
}

static int fail(int error)
{
    errno = error;
    return -1;
}

static void describe(struct v4l2_buffer *buffer)
{
    buffer->length = BUFFER_BYTES;
    buffer->bytesused = PICTURE_BYTES;
    buffer->m.offset = buffer->index * BUFFER_BYTES;
}

static int camera(unsigned long request, void *argument)
{
    switch (request) {
    case VIDIOC_QUERYCAP: {
        struct v4l2_capability *can = argument;
        *can = (struct v4l2_capability){.driver = "test", .card = "test", .bus_info = "test"};
        can->capabilities = can->device_caps = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
        return 0;
    }
    case VIDIOC_S_FMT:
    case VIDIOC_G_FMT: {
        struct v4l2_pix_format *format = &((struct v4l2_format *)argument)->fmt.pix;
        *format = (struct v4l2_pix_format){.width = WIDTH, .height = HEIGHT, .pixelformat = V4L2_PIX_FMT_YUYV};
        format->field = V4L2_FIELD_NONE;
        format->bytesperline = WIDTH * 2;
        format->sizeimage = PICTURE_BYTES;
        return 0;
    }
    case VIDIOC_REQBUFS:
        ((struct v4l2_requestbuffers *)argument)->count = BUFFERS;
        return 0;
    case VIDIOC_QUERYBUF:
        describe(argument);
        return 0;
    case VIDIOC_DQBUF:
        ((struct v4l2_buffer *)argument)->index = taken++ % BUFFERS;
        describe(argument);
        return 0;
    case VIDIOC_QBUF:
    case VIDIOC_STREAMON:
    case VIDIOC_STREAMOFF:
        return 0;
    default:
        return fail(EINVAL);
    }
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    enum state state = state_of(fd);
    if (state == NO_DEVICE)
        return ((int (*)(int, unsigned long, void *))dlsym(RTLD_NEXT, "ioctl"))(fd, request, argument);
    return state == UNPLUGGED ? fail(ENODEV) : camera(request, argument);
}

int poll(struct pollfd *watched, nfds_t count, int timeout_milliseconds)
{
    enum state state = count == 1 ? state_of(watched->fd) : NO_DEVICE;
    if (state == NO_DEVICE)
        return ((int (*)(struct pollfd *, nfds_t, int))dlsym(RTLD_NEXT, "poll"))(watched, count, timeout_milliseconds);
    usleep(state == SILENT ? timeout_milliseconds * 1000 : PERIOD_MICROSECONDS);
    state = state_of(watched->fd);
    watched->revents = state == UNPLUGGED ? POLLERR | POLLHUP : state == PLUGGED ? POLLIN | POLLRDNORM : 0;
    return watched->revents != 0;
}

int __poll_chk(struct pollfd *watched, nfds_t count, int timeout_milliseconds, size_t _bytes)
{
    return poll(watched, count, timeout_milliseconds);
}
