// Find objects in a photo: dotnet run -- nano.onnx names.txt photo.jpg
using System.Globalization;
using Microsoft.ML.OnnxRuntime;
using SixLabors.ImageSharp;
using SixLabors.ImageSharp.PixelFormats;
using SixLabors.ImageSharp.Processing;

using var session = new InferenceSession(args[0]);
int side = session.InputMetadata["images"].Dimensions[1];
string[] names = File.ReadAllLines(args[1]);

// Letterbox
using var photo = Image.Load<Rgb24>(args[2]);
photo.Mutate(image => image.AutoOrient());
var pixels = new byte[3 * photo.Width * photo.Height];
photo.CopyPixelDataTo(pixels);
double scale = (double)side / Math.Max(photo.Width, photo.Height);
int width = Math.Max(1, (int)Math.Round(photo.Width * scale));
int height = Math.Max(1, (int)Math.Round(photo.Height * scale));
byte[] canvas = Letterbox(pixels, photo.Width, photo.Height, width, height, side);

// Run
var shape = new long[] { 1, side, side, 3 };
using var images = OrtValue.CreateTensorValueFromMemory(canvas, shape);
var inputs = new Dictionary<string, OrtValue> { ["images"] = images };
using var options = new RunOptions();
using var outputs = session.Run(options, inputs, session.OutputNames);
ReadOnlySpan<float> rows = outputs[0].GetTensorDataAsSpan<float>();

// Undo
for (int i = 0; i < rows.Length; i += 7)
{
    double x1 = Undo(rows[i + 1], photo.Width, width);
    double y1 = Undo(rows[i + 2], photo.Height, height);
    double x2 = Undo(rows[i + 1] + rows[i + 3], photo.Width, width);
    double y2 = Undo(rows[i + 2] + rows[i + 4], photo.Height, height);
    string name = names[(int)rows[i + 5]];
    Console.WriteLine(string.Format(CultureInfo.InvariantCulture,
        "{0,-15} {1:F2}  {2:F1} {3:F1} {4:F1} {5:F1}", name, rows[i + 6], x1, y1, x2, y2));
}

static double Undo(double n, int size, int scaledSize) =>
    Math.Clamp(n * size / scaledSize, 0, size);

// Pixel i of a scaled line lies between two pixels, and takes a share of the second
static (int First, int Second, double Share) Neighbors(int i, int from, int to)
{
    double at = Math.Clamp((i + 0.5) * from / to - 0.5, 0, from - 1);
    int first = (int)at;
    return (first, Math.Min(first + 1, from - 1), at - first);
}

static int Mix(int a, int b, double share) => (int)(a + (b - a) * share + 0.5);

// The photo of w x h pixels, scaled to width x height, in the top left of a gray canvas
static byte[] Letterbox(byte[] photo, int w, int h, int width, int height, int side)
{
    var canvas = new byte[side * side * 3];
    Array.Fill(canvas, (byte)114);
    for (int y = 0; y < height; y++)
    {
        var row = Neighbors(y, h, height);
        for (int x = 0; x < width; x++)
        {
            var column = Neighbors(x, w, width);
            for (int c = 0; c < 3; c++)
            {
                int At(int line, int place) => photo[(line * w + place) * 3 + c];
                int Across(int line) =>
                    Mix(At(line, column.First), At(line, column.Second), column.Share);
                int value = Mix(Across(row.First), Across(row.Second), row.Share);
                canvas[(y * side + x) * 3 + c] = (byte)value;
            }
        }
    }
    return canvas;
}
