/* Prints the IPv4 addresses of a name, as the C library that it is linked with finds them. */
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *list, *at;
	char text[INET_ADDRSTRLEN];
	int err;

	if (argc != 2)
		return 2;
	err = getaddrinfo(argv[1], NULL, &hints, &list);
	if (err) {
		fprintf(stderr, "%s: %s\n", argv[1], gai_strerror(err));
		return 1;
	}
	for (at = list; at; at = at->ai_next)
		puts(inet_ntop(AF_INET, &((struct sockaddr_in *)at->ai_addr)->sin_addr, text, sizeof text));
	return 0;
}
