// Calls an HTTP API with a token of tokend: java CallApi.java TOKEN URL. Java 16 or newer.
import java.io.IOException;
import java.net.StandardProtocolFamily;
import java.net.URI;
import java.net.UnixDomainSocketAddress;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.util.regex.Pattern;

public class CallApi {
    /** The document that tokend answers with. The HTTP client of the JDK cannot use a Unix socket, so this speaks HTTP/1.0. */
    static String tokend(String method, String path) throws IOException {
        try (var channel = SocketChannel.open(StandardProtocolFamily.UNIX)) {
            channel.connect(UnixDomainSocketAddress.of("/run/tokend/http.sock"));
            String request = method + " " + path + " HTTP/1.0\r\n\r\n";
            channel.write(ByteBuffer.wrap(request.getBytes(StandardCharsets.US_ASCII)));
            byte[] answer = Channels.newInputStream(channel).readAllBytes();
            String[] parts = new String(answer, StandardCharsets.UTF_8).split("\r\n\r\n", 2);
            if (parts.length < 2 || !parts[0].startsWith("HTTP/1.0 200 ")) {
                throw new IOException("tokend: " + (parts.length < 2 ? "no answer" : member(parts[1], "detail")));
            }
            return parts[1];
        }
    }

    /** A member of a flat JSON document. Tokens and fingerprints have no character that JSON escapes; use a JSON library for others. */
    static String member(String document, String name) {
        var found = Pattern.compile("\"" + name + "\":\"([^\"\\\\]*)\"").matcher(document);
        return found.find() ? found.group(1) : "";
    }

    static HttpResponse<String> call(String url, String document) throws IOException, InterruptedException {
        String authorization = member(document, "token_type") + " " + member(document, "access_token");
        var request = HttpRequest.newBuilder(URI.create(url)).header("Authorization", authorization).build();
        return HttpClient.newHttpClient().send(request, BodyHandlers.ofString());
    }

    public static void main(String[] arguments) throws IOException, InterruptedException {
        String path = "/v1/tokens/" + arguments[0], url = arguments[1];
        String document = tokend("GET", path);
        var response = call(url, document);
        // The API refuses a token that should be valid. One more attempt, if there is another token.
        if (response.statusCode() == 401) {
            String rejected = tokend("POST", path + "/reject?fingerprint=" + member(document, "fingerprint"));
            if (member(rejected, "outcome").matches("replaced|superseded")) {
                response = call(url, tokend("GET", path));
            }
        }
        System.out.println(response.statusCode() + " " + response.body());
    }
}
