# The node in an image with nothing else in it.
#
#   docker build --build-arg VERSION=$(git describe --tags --always) -t jiji-node .
#   sysctl -w net.ipv4.ip_forward=1    # a container may only read it
#   docker run --network host --cap-add NET_ADMIN --cap-add NET_RAW --device /dev/net/tun \
#     -v /var/lib/jiji:/var/lib/jiji -v /run/jiji:/run/jiji -v /run/wireguard:/run/wireguard jiji-node

FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
ARG TARGETOS
ARG TARGETARCH
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$VERSION" -o /out/jiji-node ./cmd/jiji-node
RUN mkdir -p /out/var && ln -s /run /out/var/run

FROM scratch
COPY --from=build /out/var /var
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/jiji-node /usr/local/bin/jiji-node
VOLUME /var/lib/jiji
ENTRYPOINT ["/usr/local/bin/jiji-node"]
CMD ["run"]
