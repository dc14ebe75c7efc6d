// Calls an HTTP API with a token of tokend: CallApi TOKEN URL. .NET Core 2.1 or newer, or Mono 6.8.
using System;
using System.IO;
using System.Net;
using System.Net.Http;
using System.Net.Http.Headers;
using System.Net.Sockets;
using System.Text;
using System.Text.RegularExpressions;
using System.Threading.Tasks;

static class CallApi
{
    static readonly HttpClient Client = new HttpClient();

    // The document that tokend answers with. HTTP/1.0 is enough: its answer ends where the connection ends.
    static async Task<string> Tokend(string method, string path)
    {
        using (var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified))
        {
            await socket.ConnectAsync(new UnixDomainSocketEndPoint("/run/tokend/http.sock"));
            var stream = new NetworkStream(socket);
            byte[] request = Encoding.ASCII.GetBytes($"{method} {path} HTTP/1.0\r\n\r\n");
            await stream.WriteAsync(request, 0, request.Length);
            string answer = await new StreamReader(stream).ReadToEndAsync();
            string[] parts = answer.Split(new[] { "\r\n\r\n" }, 2, StringSplitOptions.None);
            if (parts.Length < 2 || !parts[0].StartsWith("HTTP/1.0 200 ", StringComparison.Ordinal))
                throw new IOException("tokend: " + (parts.Length < 2 ? "no answer" : Member(parts[1], "detail")));
            return parts[1];
        }
    }

    // A member of a flat JSON document. Tokens and fingerprints have no character that JSON escapes; use a JSON library for others.
    static string Member(string document, string name) =>
        Regex.Match(document, $"\"{name}\":\"([^\"\\\\]*)\"").Groups[1].Value;

    static Task<HttpResponseMessage> Call(string url, string document)
    {
        var request = new HttpRequestMessage(HttpMethod.Get, url);
        string type = Member(document, "token_type"), token = Member(document, "access_token");
        request.Headers.Authorization = new AuthenticationHeaderValue(type, token);
        return Client.SendAsync(request);
    }

    static async Task Run(string path, string url)
    {
        string document = await Tokend("GET", path);
        var response = await Call(url, document);
        // The API refuses a token that should be valid. One more attempt, if there is another token.
        if (response.StatusCode == HttpStatusCode.Unauthorized)
        {
            string rejected = await Tokend("POST", $"{path}/reject?fingerprint={Member(document, "fingerprint")}");
            if (Regex.IsMatch(Member(rejected, "outcome"), "^(replaced|superseded)$"))
                response = await Call(url, await Tokend("GET", path));
        }
        Console.WriteLine($"{(int)response.StatusCode} {await response.Content.ReadAsStringAsync()}");
    }

    static void Main(string[] arguments) => Run("/v1/tokens/" + arguments[0], arguments[1]).GetAwaiter().GetResult();
}
