/* Prints the IPv4 addresses of a name, with a second argument those of IPv6 too, as the C
   library that it is linked with finds them. */
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *list, *at;
	char text[INET6_ADDRSTRLEN];
	int err;

	if (argc < 2)
		return 2;
	if (argc > 2)
		hints.ai_family = AF_UNSPEC;
	err = getaddrinfo(argv[1], NULL, &hints, &list);
	if (err) {
		fprintf(stderr, "%s: %s\n", argv[1], gai_strerror(err));
		return 1;
	}
	for (at = list; at; at = at->ai_next)
		if (!getnameinfo(at->ai_addr, at->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST))
			puts(text);
	return 0;
}
